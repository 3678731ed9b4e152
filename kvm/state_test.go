package kvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// roundTrip changes a state, sets it, and wants to get back what it set.
func roundTrip[T any](t *testing.T, name string, get func() (T, error), set func(T) error, change func(*T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		was, err := get()
		ok(t, err)
		want := was
		change(&want)
		if reflect.DeepEqual(was, want) {
			t.Fatal("the test changes nothing")
		}
		ok(t, set(want))
		got, err := get()
		ok(t, err)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got\n%+v\nset\n%+v", got, want)
		}
	})
}

func TestStateRoundTrip(t *testing.T) {
	g := newGuest(t, nil, splitIRQChip)
	c := g.cpu
	// XCR0 takes only features that the guest sees.
	cpuid, err := g.sys.SupportedCPUID()
	ok(t, err)
	ok(t, c.SetCPUID2(cpuid))
	roundTrip(t, "Regs", c.GetRegs, c.SetRegs, func(r *Regs) {
		*r = Regs{RAX: 1, RBX: 2, RCX: 3, RDX: 4, RSI: 5, RDI: 6, RSP: 7, RBP: 8, R8: 9, R9: 10, R10: 11, R11: 12,
			R12: 13, R13: 14, R14: 15, R15: 16, RIP: 17, RFLAGS: RFLAGSFixed | 1}
	})
	roundTrip(t, "Sregs", c.GetSregs, c.SetSregs, func(s *Sregs) {
		s.FS.Base, s.GS.Base, s.CR2 = 0x1234000, 0x5678000, 0xdeadbeef
		s.GDT, s.IDT = DTable{Base: 0x5000, Limit: 0x7f}, DTable{Base: 0x6000, Limit: 0xfff}
	})
	roundTrip(t, "Sregs2", c.GetSregs2, c.SetSregs2, func(s *Sregs2) { s.FS.Base, s.CR2 = 0x4321000, 0xfeed })
	roundTrip(t, "FPU", c.GetFPU, c.SetFPU, func(f *FPU) {
		f.FCW, f.XMM[3][5], f.FPR[2][1] = 0x27f, 0xaa, 0x55
	})
	roundTrip(t, "XCRS", c.GetXCRS, c.SetXCRS, func(x *XCRS) {
		x.NrXCRs, x.XCRs[0] = 1, XCR{Value: x.XCRs[0].Value ^ 2} // SSE
	})
	roundTrip(t, "DebugRegs", c.GetDebugRegs, c.SetDebugRegs, func(d *DebugRegs) { d.DB[2], d.DR7 = 0x1000, 0x420 })
	roundTrip(t, "MPState", c.GetMPState, c.SetMPState, func(m *MPState) { m.State = KVM_MP_STATE_HALTED })
	roundTrip(t, "LAPIC", c.GetLAPIC, c.SetLAPIC, func(l *LAPICState) {
		binary.LittleEndian.PutUint32(l.Regs[lapicSVR:], 0x1fe)
		setBit(l, lapicIRR, 0x44)
		setBit(l, lapicISR, 0x33)
	})
	roundTrip(t, "VCPUEvents", c.GetVCPUEvents, c.SetVCPUEvents, func(e *VCPUEvents) {
		e.Flags |= KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW
		e.NMI.Masked = 1
		e.Interrupt.Injected, e.Interrupt.Nr = 1, 0x41
	})
	roundTrip(t, "XSAVE", c.GetXSAVE, c.SetXSAVE, func(x *[]byte) {
		*x = bytes.Clone(*x)
		binary.LittleEndian.PutUint64((*x)[512:], 3)     // XSTATE_BV: x87 and SSE
		binary.LittleEndian.PutUint32((*x)[24:], 0x1fa0) // MXCSR
		(*x)[160] = 0x77                                 // XMM0
	})
}

func TestNMI(t *testing.T) {
	g := newGuest(t, nil, splitIRQChip)
	ok(t, g.cpu.NMI())
	e, err := g.cpu.GetVCPUEvents()
	ok(t, err)
	if e.NMI.Pending == 0 {
		t.Errorf("no NMI pending: %+v", e)
	}
}

func TestXSAVESizes(t *testing.T) {
	g := newGuest(t, nil)
	area, err := g.cpu.GetXSAVE()
	ok(t, err)
	if len(area) != g.cpu.XSAVESize() || len(area) < xsaveMinSize {
		t.Fatalf("%d bytes, XSAVESize %d", len(area), g.cpu.XSAVESize())
	}
	ok(t, g.cpu.SetXSAVE(area[:1024]))
	ok(t, g.cpu.SetXSAVE(append(bytes.Clone(area), make([]byte, 8192)...)))
	err = g.cpu.SetXSAVE(append(bytes.Clone(area), 0, 0, 1))
	if err == nil || !strings.Contains(err.Error(), "lacks a feature") {
		t.Errorf("state in use beyond the host's: %v", err)
	}
	binary.LittleEndian.PutUint64(area[512:], 1<<62)
	if err := g.cpu.SetXSAVE(area); !errors.Is(err, unix.EINVAL) {
		t.Errorf("state of a feature that no processor has: %v", err)
	}
}

func TestCPUID(t *testing.T) {
	g := newGuest(t, nil)
	cpuid, err := g.sys.SupportedCPUID()
	ok(t, err)
	const leaf = 0x4000_00ff
	cpuid = append(cpuid, CPUIDEntry2{Function: leaf, EAX: 1, EBX: 2, ECX: 3, EDX: 4})
	ok(t, g.cpu.SetCPUID2(cpuid))
	got, err := g.cpu.GetCPUID2()
	ok(t, err)
	if len(got) != len(cpuid) || got[len(got)-1] != cpuid[len(cpuid)-1] {
		t.Errorf("%d leaves, last %+v; set %d, last %+v", len(got), got[len(got)-1], len(cpuid), cpuid[len(cpuid)-1])
	}
	if err := g.cpu.SetCPUID2(make([]CPUIDEntry2, 10_000)); !errors.Is(err, unix.E2BIG) {
		t.Errorf("10,000 leaves: %v", err)
	}
}

func TestMSRs(t *testing.T) {
	g := newGuest(t, nil, splitIRQChip)
	cpuid, err := g.sys.SupportedCPUID()
	ok(t, err)
	ok(t, g.cpu.SetCPUID2(cpuid))
	indices, err := g.sys.MSRIndexList()
	ok(t, err)

	// All of them, as a snapshot does, leaving out what this vCPU lacks.
	all := entriesFor(indices)
	for read := 0; read < len(all); {
		err := g.cpu.GetMSRs(all[read:])
		var e *MSRError
		if errors.As(err, &e) {
			if e.Request != KVM_GET_MSRS || e.Entry.Index != all[read+e.Position].Index {
				t.Fatalf("%+v", e)
			}
			t.Log(e)
			read += e.Position
			all = append(all[:read], all[read+1:]...)
			continue
		}
		ok(t, err)
		break
	}
	if len(all) < len(indices)/2 {
		t.Errorf("%d of %d MSRs can be read", len(all), len(indices))
	}

	const star, lstar = 0xc0000081, 0xc0000082
	set := []MSREntry{{Index: star, Data: 0x0023_0010_0000_0000}, {Index: lstar, Data: 0xffffffff81000000}}
	ok(t, g.cpu.SetMSRs(set))
	got := entriesFor([]uint32{star, lstar})
	ok(t, g.cpu.GetMSRs(got))
	if !reflect.DeepEqual(got, set) {
		t.Errorf("got %x, set %x", got, set)
	}

	// More than the kernel takes at once, with a bad one far behind.
	const many, bad = 600, 517
	list := make([]MSREntry, many)
	for i := range list {
		list[i] = MSREntry{Index: lstar, Data: uint64(i)}
	}
	ok(t, g.cpu.SetMSRs(list))
	list[bad] = MSREntry{Index: 0x12345678, Data: 9}
	err = g.cpu.SetMSRs(list)
	var e *MSRError
	if !errors.As(err, &e) || e.Position != bad || e.Total != many || e.Entry.Index != 0x12345678 {
		t.Fatalf("%+v", err)
	}
	if want := "kvm: KVM_SET_MSRS: MSR 0x12345678 refused value 0x9 (entry 518 of 600)"; err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	one := entriesFor([]uint32{lstar})
	ok(t, g.cpu.GetMSRs(one))
	if one[0].Data != bad-1 {
		t.Errorf("the last MSR before the bad one has %d, want %d", one[0].Data, bad-1)
	}
	ok(t, g.cpu.GetMSRs(nil))
}

func TestTranslate(t *testing.T) {
	g := newGuest(t, nil)
	for linear, valid := range map[uint64]uint8{dataAddr + 5: 1, 1 << 40: 0} {
		tr, err := g.cpu.Translate(linear)
		ok(t, err)
		if tr.Valid != valid || valid == 1 && tr.PhysicalAddress != linear {
			t.Errorf("%#x: %+v", linear, tr)
		}
	}
}

func TestClock(t *testing.T) {
	_, vm := newTestVM(t)
	splitIRQChip(vm)
	const day = 24 * uint64(time.Hour)
	ok(t, vm.SetClock(ClockData{Clock: day}))
	c, err := vm.GetClock()
	ok(t, err)
	if c.Clock < day || c.Clock > day+uint64(time.Minute) {
		t.Errorf("clock %d, set to %d", c.Clock, day)
	}
}

func TestClockRealtime(t *testing.T) {
	// KVM ties kvmclock to the TSC only once there are vCPUs, and they run.
	g := newGuest(t, []byte{0xe6, 0x10}, splitIRQChip) // out 0x10, al
	g.runTo(0x10)
	vm := g.vm
	c, err := vm.GetClock()
	ok(t, err)
	if c.Flags&KVM_CLOCK_REALTIME == 0 {
		t.Skip("needs a host whose clock source is its TSC: KVM_CLOCK_REALTIME is not set")
	}
	if wall := time.Unix(0, int64(c.Realtime)); time.Since(wall).Abs() > time.Minute || c.HostTSC == 0 {
		t.Errorf("read at %v, TSC %d", wall, c.HostTSC)
	}
	// A second of blackout passes in the guest's clock too.
	c.Realtime -= uint64(time.Second)
	ok(t, vm.SetClock(c))
	later, err := vm.GetClock()
	ok(t, err)
	if got := later.Clock - c.Clock; got < uint64(time.Second) || got > uint64(time.Minute) {
		t.Errorf("the clock went on by %v over a second", time.Duration(got))
	}
}

func TestTSC(t *testing.T) {
	g := newGuest(t, nil, splitIRQChip)
	khz, err := g.cpu.GetTSCKHz()
	ok(t, err)
	if khz < 100_000 || khz > 20_000_000 {
		t.Errorf("%d kHz", khz)
	}
	ok(t, g.cpu.SetTSCKHz(khz))
	if n, err := g.vm.CheckExtension(KVM_CAP_VM_TSC_CONTROL); err == nil && n != 0 {
		ok(t, g.vm.SetTSCKHz(khz))
		got, err := g.vm.GetTSCKHz()
		ok(t, err)
		if got != khz {
			t.Errorf("%d kHz, set %d", got, khz)
		}
	}
	ok(t, g.cpu.HasTSCOffset())
	offset, err := g.cpu.GetTSCOffset()
	ok(t, err)
	offset -= 1 << 40
	ok(t, g.cpu.SetTSCOffset(offset))
	got, err := g.cpu.GetTSCOffset()
	ok(t, err)
	if softwareKVM() {
		t.Logf("kvm_pvm ignores the TSC offset: %#x after setting %#x", got, offset)
	} else if diff := int64(got - offset); max(diff, -diff) > int64(khz)*1000 {
		// Where the host's TSC is unstable, KVM computes the offset anew
		// each time that the vCPU's thread comes back to a processor.
		t.Errorf("offset %#x, set %#x, more than a second apart", got, offset)
	}
	if err := g.cpu.KVMClockCtrl(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("for a guest without kvmclock: %v, want %v", err, unix.EINVAL)
	}
}

// TestAnswersSurviveStackGrowth has the stack move under calls whose argument
// is on it, again and again. An answer written to where the stack used to be
// would come back empty.
func TestAnswersSurviveStackGrowth(t *testing.T) {
	_, vm := newTestVM(t)
	ok(t, vm.SetClock(ClockData{Clock: uint64(time.Hour)}))
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC() // shrinks stacks
			}
		}
	}()
	const goroutines, calls = 80, 100
	empty := make(chan int)
	for range goroutines {
		go func() {
			n := 0
			for depth := range calls {
				n += clockAt(vm, depth)
			}
			empty <- n
		}()
	}
	for range goroutines {
		if n := <-empty; n != 0 {
			t.Errorf("%d of %d answers empty", n, calls)
		}
	}
}

// clockAt calls GetClock that many frames deep and is 1 if the answer is empty.
func clockAt(vm *VM, depth int) int {
	var frame [256]byte
	if depth > 0 {
		n := clockAt(vm, depth-1)
		runtime.KeepAlive(&frame)
		return n
	}
	c, err := vm.GetClock()
	if err != nil || c.Clock < uint64(time.Hour) || c.Clock == math.MaxUint64 {
		return 1
	}
	return 0
}

// TestMoveGuest saves a running guest and continues it in a fresh VM.
func TestMoveGuest(t *testing.T) {
	code := []byte{
		0x48, 0xff, 0xc0, // inc rax
		0x66, 0x0f, 0xef, 0xc0, // pxor xmm0, xmm0
		0x66, 0x48, 0x0f, 0x6e, 0xc8, // movq xmm1, rax
		0xe6, 0x10, // out 0x10, al
		0x66, 0x48, 0x0f, 0x7e, 0xcb, // movq rbx, xmm1
		0xeb, 0xeb, // jmp to the start
	}
	a := newGuest(t, code, splitIRQChip)
	cpuid, err := a.sys.SupportedCPUID()
	ok(t, err)
	ok(t, a.cpu.SetCPUID2(cpuid))
	for range 10 {
		a.runTo(0x10)
	}
	a.cpu.SetImmediateExit(true) // completes the OUT
	if err := a.cpu.Run(); err != unix.EINTR {
		t.Fatal(err)
	}

	b := newGuest(t, nil, splitIRQChip)
	copy(b.mem, a.mem)
	move := func(name string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	leaves, err := a.cpu.GetCPUID2()
	ok(t, err)
	move("CPUID", b.cpu.SetCPUID2(leaves))
	move("MP state", carry(a.cpu.GetMPState, b.cpu.SetMPState))
	move("registers", carry(a.cpu.GetRegs, b.cpu.SetRegs))
	move("system registers", carry(a.cpu.GetSregs, b.cpu.SetSregs))
	move("XSAVE", carry(a.cpu.GetXSAVE, b.cpu.SetXSAVE))
	move("XCRs", carry(a.cpu.GetXCRS, b.cpu.SetXCRS))
	move("debug registers", carry(a.cpu.GetDebugRegs, b.cpu.SetDebugRegs))
	move("local APIC", carry(a.cpu.GetLAPIC, b.cpu.SetLAPIC))
	move("events", carry(a.cpu.GetVCPUEvents, b.cpu.SetVCPUEvents))
	move("clock", carry(a.vm.GetClock, b.vm.SetClock))

	b.runTo(0x10)
	r, err := b.cpu.GetRegs()
	ok(t, err)
	if r.RAX != 11 || r.RBX != 10 {
		t.Errorf("RAX %d, RBX %d, want 11 and 10 (from XMM1)", r.RAX, r.RBX)
	}
}

func carry[T any](get func() (T, error), set func(T) error) error {
	v, err := get()
	if err != nil {
		return err
	}
	return set(v)
}
