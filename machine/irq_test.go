package machine

import (
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/kvm"
)

// Registers of the local APIC (SDM vol. 3 table 12-1).
const (
	lapicSVR = 0xf0
	lapicIRR = 0x200
)

// requested tells whether the first processor's local APIC has the vector in
// its interrupt request register.
func requested(t *testing.T, m *Machine, vector int) bool {
	t.Helper()
	l, err := m.cpus[0].KVM().GetLAPIC()
	if err != nil {
		t.Fatal(err)
	}
	return l.Regs[lapicIRR+vector/32*16+vector%32/8]>>(vector%8)&1 == 1
}

// await waits for KVM to deliver, which it may do on a kernel thread.
func await(t *testing.T, m *Machine, vector int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !requested(t, m, vector); {
		if time.Now().After(end) {
			t.Fatalf("vector %#x did not arrive", vector)
		}
	}
}

func idleMachine(t *testing.T) *Machine {
	t.Helper()
	m, err := New(openKVM(t), Config{CPUs: 1, Memory: 32 << 20, Kernel: program(t)(micro.Spin())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	// Switch the local APIC on: a processor that has just been reset takes
	// no interrupts.
	err = m.cpus[0].SetEntry(func(_ *kvm.Regs, s *kvm.Sregs) { s.APICBase |= 1 << 11 })
	if err != nil {
		t.Fatal(err)
	}
	l, err := m.cpus[0].KVM().GetLAPIC()
	if err != nil {
		t.Fatal(err)
	}
	l.Regs[lapicSVR+1] |= 1
	if err := m.cpus[0].KVM().SetLAPIC(l); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestVectors(t *testing.T) {
	m := idleMachine(t)
	v, err := m.router.newVectors(3)
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	to := func(vector uint32) devices.MSI { return devices.MSI{Address: 0xfee00000, Data: vector} }

	if err := v.Unmask(0, to(0x41)); err != nil {
		t.Fatal(err)
	}
	if err := v.Fire(0); err != nil {
		t.Fatal(err)
	}
	await(t, m, 0x41)

	// The guest moves a vector that is unmasked.
	if err := v.Unmask(0, to(0x52)); err != nil {
		t.Fatal(err)
	}
	if err := v.Fire(0); err != nil {
		t.Fatal(err)
	}
	await(t, m, 0x52)

	// Fired while it is masked: it comes at the unmask, not before.
	if err := v.Unmask(1, to(0x63)); err != nil {
		t.Fatal(err)
	}
	if err := v.Mask(1); err != nil {
		t.Fatal(err)
	}
	if err := v.Fire(1); err != nil {
		t.Fatal(err)
	}
	if requested(t, m, 0x63) {
		t.Error("a masked vector was delivered")
	}
	if err := v.Unmask(1, to(0x74)); err != nil {
		t.Fatal(err)
	}
	await(t, m, 0x74)
	if requested(t, m, 0x63) {
		t.Error("the message from before the mask was delivered")
	}
	if err := v.Mask(2); err != nil {
		t.Errorf("mask of a vector that was never unmasked: %v", err)
	}
}

// TestVectorsEnd checks that a guest cannot have more vectors than KVM has
// routes, and that what was made so far is given back.
func TestVectorsEnd(t *testing.T) {
	m := idleMachine(t)
	if _, err := m.router.newVectors(maxGSI); err == nil {
		t.Error("more vectors than KVM has routes")
	}
}

func TestEdgePin(t *testing.T) {
	m := idleMachine(t)
	// Redirection entry of COM1's pin: vector 0x35, edge, to APIC 0.
	write := func(register, value byte) {
		m.ioapic.Write(0x00, []byte{register, 0, 0, 0})
		m.ioapic.Write(0x10, []byte{value, 0, 0, 0})
	}
	write(0x10+2*devices.COM1GSI+1, 0)
	write(0x10+2*devices.COM1GSI, 0x35)
	m.ioapic.Pin(devices.COM1GSI).Set(true)
	await(t, m, 0x35)
}

// TestRefusedRoute has a guest send a vector to where KVM sends nothing: bits 32 to
// 39 of the address are reserved with wide APIC IDs (KVM API §4.52). The other
// vectors go on, and that one gets a route again.
func TestRefusedRoute(t *testing.T) {
	m := idleMachine(t)
	v, err := m.router.newVectors(2)
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	good := func(vector uint32) devices.MSI { return devices.MSI{Address: 0xfee00000, Data: vector} }
	bad := devices.MSI{Address: 0xfee00000 | 1<<32, Data: 0x41}
	if err := v.Unmask(0, bad); err == nil {
		t.Fatal("KVM took a route to a reserved address")
	}
	unmask := func(n int, vector uint32) {
		t.Helper()
		if err := v.Unmask(n, good(vector)); err != nil {
			t.Fatalf("after the refusal: %v", err)
		}
	}
	unmask(1, 0x42)
	if err := v.Unmask(1, bad); err == nil {
		t.Fatal("KVM took a route to a reserved address")
	}
	unmask(0, 0x41)
	for n, vector := range []int{0x41, 0x42} {
		if err := v.Fire(n); err != nil {
			t.Fatal(err)
		}
		await(t, m, vector)
	}
}
