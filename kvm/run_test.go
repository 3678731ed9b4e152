package kvm

import (
	"bytes"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPortIO(t *testing.T) {
	g := newGuest(t, []byte{
		0xb0, 0x41, // mov al, 0x41
		0xe6, 0x10, // out 0x10, al
		0x66, 0xba, 0x34, 0x12, // mov dx, 0x1234
		0xed,       // in eax, dx
		0xe7, 0x12, // out 0x12, eax
		0xeb, 0xfe, // jmp $
	})
	if io := g.runTo(0x10); io.Size != 1 || io.Count != 1 || !bytes.Equal(io.Data, []byte{0x41}) {
		t.Errorf("byte out: %+v", io)
	}
	g.run(KVM_EXIT_IO)
	io := g.cpu.IO()
	if io.Write || io.Port != 0x1234 || io.Size != 4 || len(io.Data) != 4 {
		t.Fatalf("in: %+v", io)
	}
	copy(io.Data, "\x01\x02\x03\x04")
	if io := g.runTo(0x12); !bytes.Equal(io.Data, []byte{1, 2, 3, 4}) {
		t.Errorf("the guest read %x, was given 01020304", io.Data)
	}
}

func TestMMIO(t *testing.T) {
	g := newGuest(t, []byte{
		0xbb, 0x00, 0x00, 0x00, 0x10, // mov ebx, mmioAddr
		0xb8, 0x78, 0x56, 0x34, 0x12, // mov eax, 0x12345678
		0x89, 0x43, 0x04, // mov [rbx+4], eax
		0x48, 0x8b, 0x03, // mov rax, [rbx]
		0x48, 0x89, 0x43, 0x08, // mov [rbx+8], rax
		0xe6, 0x10, // out 0x10, al
	})
	g.run(KVM_EXIT_MMIO)
	if m := g.cpu.MMIO(); !m.Write || m.Addr != mmioAddr+4 || !bytes.Equal(m.Data, []byte{0x78, 0x56, 0x34, 0x12}) {
		t.Errorf("write: %+v", m)
	}
	g.run(KVM_EXIT_MMIO)
	m := g.cpu.MMIO()
	if m.Write || m.Addr != mmioAddr || len(m.Data) != 8 {
		t.Fatalf("read: %+v", m)
	}
	copy(m.Data, "abcdefgh")
	g.run(KVM_EXIT_MMIO)
	if m := g.cpu.MMIO(); !m.Write || m.Addr != mmioAddr+8 || string(m.Data) != "abcdefgh" {
		t.Errorf("the guest read %q, was given abcdefgh", m.Data)
	}
	g.runTo(0x10)
}

// TestStringIO checks that a repeated OUTS comes as one exit with all values.
func TestStringIO(t *testing.T) {
	g := newGuest(t, []byte{
		0xbe, 0x00, 0x00, 0x02, 0x00, // mov esi, dataAddr
		0xb9, 0x04, 0x00, 0x00, 0x00, // mov ecx, 4
		0x66, 0xba, 0x20, 0x00, // mov dx, 0x20
		0xf3, 0x66, 0x6f, // rep outsw
		0xe6, 0x10, // out 0x10, al
	})
	copy(g.mem[dataAddr:], "aabbccdd")
	var got []byte
	for len(got) < 8 {
		io := g.runTo(0x20)
		if io.Size != 2 || len(io.Data) != io.Size*io.Count || io.Count == 0 {
			t.Fatalf("%+v", io)
		}
		got = append(got, io.Data...)
	}
	if string(got) != "aabbccdd" {
		t.Errorf("got %q", got)
	}
	g.runTo(0x10)
}

// TestImmediateExit: with it set the guest is not entered, until it is cleared.
func TestImmediateExit(t *testing.T) {
	g := newGuest(t, []byte{0xe6, 0x10}) // out 0x10, al
	g.cpu.SetImmediateExit(true)
	for range 3 {
		if err := g.cpu.Run(); err != unix.EINTR {
			t.Fatalf("Run returned %v, want %v", err, unix.EINTR)
		}
	}
	regs, err := g.cpu.GetRegs()
	ok(t, err)
	if regs.RIP != codeAddr {
		t.Errorf("the guest ran to %#x", regs.RIP)
	}
	g.cpu.SetImmediateExit(false)
	g.runTo(0x10)
}

// TestCompleteIO: the instruction of a port exit ends with the next KVM_RUN,
// even one that does not enter the guest. A snapshot depends on it.
func TestCompleteIO(t *testing.T) {
	g := newGuest(t, []byte{0xe4, 0x20, 0xe6, 0x10}) // in al, 0x20; out 0x10, al
	g.run(KVM_EXIT_IO)
	g.cpu.IO().Data[0] = 0x5a
	g.cpu.SetImmediateExit(true)
	if err := g.cpu.Run(); err != unix.EINTR {
		t.Fatalf("Run returned %v, want %v", err, unix.EINTR)
	}
	regs, err := g.cpu.GetRegs()
	ok(t, err)
	if regs.RIP != codeAddr+2 || regs.RAX&0xff != 0x5a {
		t.Errorf("RIP %#x, RAX %#x: the access was not completed", regs.RIP, regs.RAX)
	}
}

// TestKick stops a guest that spins, from another goroutine, as a pause does.
func TestKick(t *testing.T) {
	g := newGuest(t, []byte{
		0x48, 0xff, 0x04, 0x25, 0x00, 0x00, 0x02, 0x00, // inc qword [dataAddr]
		0xeb, 0xf6, // jmp to the start
	})
	counter := &entriesOf[uint64](g.mem[dataAddr:][:8])[0]
	for round := range 5 {
		before := atomic.LoadUint64(counter)
		tid := unix.Gettid()
		kicked := make(chan error)
		go func() {
			for atomic.LoadUint64(counter) == before {
				runtime.Gosched() // until the guest runs
			}
			// The spinning guest must not hold up the collector: with
			// RawSyscall this would never return.
			runtime.GC()
			g.cpu.SetImmediateExit(true)
			kicked <- unix.Tgkill(unix.Getpid(), tid, unix.SIGUSR1)
		}()
		for {
			err := g.cpu.Run()
			if err != unix.EINTR {
				t.Fatalf("round %d: Run returned %v, exit %v, want %v", round, err, g.cpu.ExitReason(), unix.EINTR)
			}
			select {
			case err := <-kicked:
				ok(t, err)
			default:
				continue // one of Go's own signals
			}
			break
		}
		g.cpu.SetImmediateExit(false)
	}
}

// TestExitDetails decodes exits that no guest here can produce at will.
func TestExitDetails(t *testing.T) {
	v := &VCPU{run: make([]byte, 3*4096)}
	h := v.header()

	h.exitReason = 17
	*exit[InternalError](v) = InternalError{
		Suberror: KVM_INTERNAL_ERROR_EMULATION, NData: 4,
		Data: [16]uint64{1, 0x0000_0000_0090_cc03, 0, 77},
	}
	if got := v.ExitReason(); got != KVM_EXIT_INTERNAL_ERROR || got.String() != "KVM_EXIT_INTERNAL_ERROR" {
		t.Errorf("reason %v", got)
	}
	if got := v.InternalError().Instruction(); !bytes.Equal(got, []byte{0xcc, 0x90, 0}) {
		t.Errorf("instruction % x", got)
	}
	if got := v.InternalError().Values(); len(got) != 4 || got[3] != 77 {
		t.Errorf("values %v", got)
	}
	v.InternalError().NData = 1 << 30
	if got := v.InternalError().Values(); len(got) != 16 {
		t.Errorf("%d values of an impossible count", len(got))
	}
	v.InternalError().Data[1] = 0xff
	if got := v.InternalError().Instruction(); len(got) != 15 {
		t.Errorf("%d bytes of an impossible instruction", len(got))
	}
	v.InternalError().Suberror = KVM_INTERNAL_ERROR_SIMUL_EX
	if got := v.InternalError().Instruction(); got != nil {
		t.Errorf("instruction % x where there is none", got)
	}

	*exit[MSRAccess](v) = MSRAccess{Reason: KVM_MSR_EXIT_REASON_FILTER, Index: 0x10}
	v.MSR().Data, v.MSR().Error = 42, 1
	if got := exit[MSRAccess](v); got.Data != 42 || got.Error != 1 || got.Index != 0x10 {
		t.Errorf("MSR %+v", got)
	}

	for _, e := range []ioExit{
		{size: 4, count: 1, dataOffset: 3*4096 - 3},
		{size: 4, count: 1 << 31, dataOffset: 4096},
		{size: 4, count: 1, dataOffset: 1 << 63},
		{size: 255, count: 1<<32 - 1, dataOffset: 1<<64 - 1},
	} {
		*exit[ioExit](v) = e
		if io := v.IO(); io.Data != nil {
			t.Errorf("%+v gave %d bytes outside the mapping", e, len(io.Data))
		}
	}
	*exit[mmioExit](v) = mmioExit{len: 1 << 20}
	if m := v.MMIO(); len(m.Data) != 8 {
		t.Errorf("MMIO of %d bytes", len(m.Data))
	}
}

func TestControlBits(t *testing.T) {
	v := &VCPU{run: make([]byte, 4096)}
	v.SetImmediateExit(true)
	v.SetRequestInterruptWindow(true)
	if v.run[0] != 1 || v.run[1] != 1 {
		t.Errorf("set: % x", v.run[:4])
	}
	v.SetImmediateExit(false)
	if v.run[0] != 1 || v.run[1] != 0 {
		t.Errorf("cleared: % x", v.run[:4])
	}
	v.SetRequestInterruptWindow(false)
	if v.run[0] != 0 {
		t.Errorf("cleared: % x", v.run[:4])
	}
}

func TestSingleStep(t *testing.T) {
	if softwareKVM() {
		t.Skip("kvm_pvm gives debug exceptions to the guest, whatever KVM_SET_GUEST_DEBUG says")
	}
	g := newGuest(t, []byte{0x90, 0x90, 0xe6, 0x10}) // nop; nop; out 0x10, al
	ok(t, g.cpu.SetGuestDebug(GuestDebug{Control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP}))
	for i := range uint64(2) {
		g.run(KVM_EXIT_DEBUG)
		if d := g.cpu.Debug(); d.PC != codeAddr+i+1 || d.DR6>>14&1 == 0 {
			t.Errorf("step %d: %+v", i, d)
		}
	}
	ok(t, g.cpu.SetGuestDebug(GuestDebug{}))
	g.runTo(0x10)
}

// TestHotPathsDoNotAllocate covers what is called for every exit or interrupt.
func TestHotPathsDoNotAllocate(t *testing.T) {
	g := newGuest(t, []byte{
		0xbb, 0x00, 0x00, 0x00, 0x10, // mov ebx, mmioAddr
		0xe6, 0x10, // out 0x10, al
		0x89, 0x03, // mov [rbx], eax
		0xeb, 0xfa, // jmp to the out
	}, splitIRQChip)
	var seen uint64
	run := func() {
		for g.cpu.Run() == unix.EINTR {
		}
		switch g.cpu.ExitReason() {
		case KVM_EXIT_IO:
			seen += uint64(len(g.cpu.IO().Data))
		case KVM_EXIT_MMIO:
			seen += uint64(len(g.cpu.MMIO().Data))
		}
	}
	_, full := newTestVM(t)
	ok(t, full.CreateIRQChip())
	paths := map[string]func(){
		"Run, IO and MMIO":      run,
		"SetImmediateExit, Run": func() { g.cpu.SetImmediateExit(true); _ = g.cpu.Run(); g.cpu.SetImmediateExit(false) },
		"SignalMSI":             func() { _, _ = g.vm.SignalMSI(lapicMSIAddr, 0x51) },
		"IRQLine":               func() { _ = full.IRQLine(4, true); _ = full.IRQLine(4, false) },
		"GetRegs, SetRegs":      func() { r, _ := g.cpu.GetRegs(); _ = g.cpu.SetRegs(r) },
		"GetSregs":              func() { s, _ := g.cpu.GetSregs(); seen += s.CR0 },
		"GetLAPIC":              func() { l, _ := g.cpu.GetLAPIC(); seen += uint64(l.Regs[0]) },
		"GetClock":              func() { c, _ := g.vm.GetClock(); seen += c.Clock },
	}
	for name, f := range paths {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
	if seen == 0 {
		t.Error("nothing ran")
	}
}

func BenchmarkPortExit(b *testing.B) {
	g := newGuest(b, []byte{0xe6, 0x10, 0xeb, 0xfc}) // out 0x10, al; jmp to the start
	b.ReportAllocs()
	for b.Loop() {
		for g.cpu.Run() == unix.EINTR {
		}
		if g.cpu.ExitReason() != KVM_EXIT_IO || len(g.cpu.IO().Data) != 1 {
			b.Fatal(g.cpu.ExitReason())
		}
	}
}

func BenchmarkMMIOExit(b *testing.B) {
	g := newGuest(b, []byte{
		0xbb, 0x00, 0x00, 0x00, 0x10, // mov ebx, mmioAddr
		0x89, 0x03, // mov [rbx], eax
		0xeb, 0xfc, // jmp to the mov
	})
	b.ReportAllocs()
	for b.Loop() {
		for g.cpu.Run() == unix.EINTR {
		}
		if g.cpu.ExitReason() != KVM_EXIT_MMIO || len(g.cpu.MMIO().Data) != 4 {
			b.Fatal(g.cpu.ExitReason())
		}
	}
}
