package micro

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/kvm"
)

// stopForTest is a port write that nothing else makes.
func stopForTest() Stop { return Stop{{Port: 0x777, Width: Long, Value: 0x1234_5678}} }

var stopAccess = access{reason: kvm.KVM_EXIT_IO, addr: 0x777, write: true, size: 4, value: 0x1234_5678}

func program(t *testing.T) func([]byte, error) []byte {
	return func(p []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
}

func TestExitRunsInRing3(t *testing.T) {
	g := newGuest(t, program(t)(Exit(stopForTest())))
	if got := g.next(); got != stopAccess {
		t.Fatalf("first exit %+v, want %+v", got, stopAccess)
	}
	regs, err := g.cpu.GetRegs()
	g.must(err)
	sregs, err := g.cpu.GetSregs()
	g.must(err)
	if sregs.CS.Selector&3 != 3 || sregs.CS.L != 1 {
		t.Errorf("CS %+v: want 64-bit code in ring 3", sregs.CS)
	}
	if regs.RDI != startInfo || regs.RSP != StackTop {
		t.Errorf("RDI %#x, RSP %#x: want %#x, %#x", regs.RDI, regs.RSP, startInfo, StackTop)
	}
}

func TestStopWritesInOrder(t *testing.T) {
	g := newGuest(t, program(t)(Exit(append(append(PowerOff(), QEMUPowerOff()...), append(Reset(), DebugExit(3)...)...))))
	for _, want := range []access{
		{addr: 0x604, size: 2, value: 0x3400},
		{addr: 0x604, size: 2, value: 0x2000},
		{addr: 0xcf9, size: 1, value: 6},
		{addr: 0xf4, size: 4, value: 3},
	} {
		want.reason, want.write = kvm.KVM_EXIT_IO, true
		if got := g.next(); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestFaultEndsVisibly(t *testing.T) {
	build := func(emit func(a *Asm)) []byte {
		var a Asm
		a.Data(0x90) // so that the address is not just CodeStart
		emit(&a)
		code, err := a.Assemble()
		if err != nil {
			t.Fatal(err)
		}
		return program(t)(Program{Code: code}.ELF())
	}
	for _, test := range []struct {
		name      string
		emit      func(a *Asm)
		vector    uint64
		errorCode uint64
	}{
		{"invalid opcode", (*Asm).Ud2, 6, 0},
		{"privileged instruction", (*Asm).Hlt, 13, 0},
		{"page fault", func(a *Asm) { a.Data(0x48, 0xa1, 0, 0, 0, 0, 2, 0, 0, 0) }, 14, 4}, // mov rax, [8 GiB]
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newGuest(t, build(test.emit))
			want := access{reason: kvm.KVM_EXIT_IO, addr: FaultPort, write: true, size: 1, value: test.vector}
			if got := g.next(); got != want {
				t.Fatalf("got %+v, want %+v", got, want)
			}
			regs, err := g.cpu.GetRegs()
			g.must(err)
			if regs.RAX != test.vector || regs.RBX != CodeStart+1 || regs.RCX != test.errorCode {
				t.Errorf("vector %d at %#x, error code %#x: want %d at %#x, %#x", regs.RAX, regs.RBX, regs.RCX, test.vector, CodeStart+1, test.errorCode)
			}
			if test.vector == 14 && regs.RDX != 8<<30 {
				t.Errorf("fault address %#x, want 8 GiB", regs.RDX)
			}
			if got := g.next(); got.reason != kvm.KVM_EXIT_SHUTDOWN {
				t.Errorf("then %+v, want a triple fault", got)
			}
		})
	}
}

func TestPortLoop(t *testing.T) {
	for _, w := range []Width{Byte, Word, Long} {
		for _, dir := range []Access{Read, Write} {
			g := newGuest(t, program(t)(PortLoop(dir, 0x2ee, w, 3, stopForTest())))
			for range 3 {
				got := g.next()
				if got.addr != 0x2ee || got.write != (dir == Write) || got.size != int(w) {
					t.Fatalf("width %d, direction %d: got %+v", w, dir, got)
				}
			}
			if got := g.next(); got != stopAccess {
				t.Fatalf("got %+v, want the stop", got)
			}
			g.checkTimes(3)
		}
	}
}

func TestMMIOLoop(t *testing.T) {
	const addr = 0xd000_0010
	for _, w := range widths {
		for _, dir := range []Access{Read, Write} {
			g := newGuest(t, program(t)(MMIOLoop(dir, addr, w, 2, stopForTest())))
			for range 2 {
				got := g.next()
				if got.reason != kvm.KVM_EXIT_MMIO || got.addr != addr || got.write != (dir == Write) || got.size != int(w) {
					t.Fatalf("width %d, direction %d: got %+v", w, dir, got)
				}
			}
			if got := g.next(); got != stopAccess {
				t.Fatalf("got %+v, want the stop", got)
			}
			g.checkTimes(2)
		}
	}
}

// checkTimes checks the result words of a timed loop.
func (g *guest) checkTimes(count uint64) {
	g.t.Helper()
	first, last := g.word(ResultStart+ResultFirstTSC), g.word(ResultStart+ResultLastTSC)
	if got := g.word(ResultStart + ResultCount); got != count || first == 0 || last <= first {
		g.t.Errorf("count %d, time stamps %d to %d: want count %d and rising stamps", got, first, last, count)
	}
}

func TestLoopOfZero(t *testing.T) {
	g := newGuest(t, program(t)(PortLoop(Write, 0x2ee, Byte, 0, stopForTest())))
	if got := g.next(); got != stopAccess {
		t.Errorf("got %+v, want the stop", got)
	}
}

func TestHello(t *testing.T) {
	const text = "hello\nworld\n"
	g := newGuest(t, program(t)(Hello(text, stopForTest())))
	var got strings.Builder
	for {
		a := g.next()
		if a == stopAccess {
			break
		}
		switch {
		case a.reason != kvm.KVM_EXIT_IO || a.addr != 0x3fd && a.addr != 0x3f8:
			t.Fatalf("after %q: %+v", got.String(), a)
		case a.addr == 0x3f8:
			got.WriteByte(byte(a.value))
		}
	}
	if got.String() != text {
		t.Errorf("serial port got %q, want %q", got.String(), text)
	}
}

func TestTouch(t *testing.T) {
	const start, end, stride = 16<<20 + 8, 17 << 20, 8192
	g := newGuest(t, program(t)(Touch(start, end, stride, 3, stopForTest())))
	if got := g.next(); got != stopAccess {
		t.Fatalf("got %+v, want the stop", got)
	}
	g.checkTimes(3)
	want := make([]byte, 2<<20)
	for at := start; at < end; at += stride {
		want[at-16<<20] = 3
	}
	if !bytes.Equal(g.ram[16<<20:18<<20], want) {
		t.Error("memory is not what three passes leave")
	}
}

func TestCheck(t *testing.T) {
	const start, end, stride = 16 << 20, 17 << 20, 4096
	for _, test := range []struct {
		name       string
		mismatches uint64
	}{{"as it should be", 0}, {"one word changed", 1}} {
		t.Run(test.name, func(t *testing.T) {
			g := newGuest(t, program(t)(Check(start, end, stride, 3, stopForTest())))
			if test.mismatches > 0 {
				g.ram[start+3*stride] = 77
			}
			if got := g.next(); got != stopAccess {
				t.Fatalf("got %+v, want the stop", got)
			}
			r, err := ReadResult(g.ram[ResultStart:])
			g.must(err)
			if r.Count != 3 || r.Mismatches != test.mismatches {
				t.Errorf("result %+v, want %d mismatches", r, test.mismatches)
			}
			if test.mismatches > 0 && r.Detail != start+3*stride {
				t.Errorf("mismatch at %#x", r.Detail)
			}
		})
	}
}

func TestTouchForever(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	g := newGuest(t, program(t)(Touch(16<<20, 17<<20, 4096, Forever, nil)))
	count := func() uint64 { return g.word(ResultStart + ResultCount) }
	g.runFor(time.Millisecond, func() bool { return count() > 0 })
	before := count()
	g.runFor(time.Millisecond, func() bool { return count() > before })
}

func TestSpin(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	g := newGuest(t, program(t)(Spin()))
	interrupted := 0
	g.runFor(time.Millisecond, func() bool { interrupted++; return interrupted > 5 })
	regs, err := g.cpu.GetRegs()
	g.must(err)
	if regs.RIP < CodeStart || regs.RIP > CodeStart+16 {
		t.Errorf("RIP %#x: not in the program", regs.RIP)
	}
}

func TestAttack(t *testing.T) {
	attack := Attack{
		Seed: 42, Count: 4000, Ports: true,
		SkipPorts: []Span{{0x100, 0x7fff}},
		MMIO:      []Span{{0xd000_0000, 0xd000_ffff}, {5 << 30, 5<<30 + 0xfff}},
		Stop:      stopForTest(),
	}
	run := func() (all []access) {
		g := newGuest(t, program(t)(attack.ELF()))
		for {
			a := g.next()
			if a == stopAccess {
				break
			}
			if a.reason != kvm.KVM_EXIT_IO && a.reason != kvm.KVM_EXIT_MMIO {
				t.Fatalf("after %d accesses: %+v", len(all), a)
			}
			all = append(all, a)
		}
		if got := g.word(ResultStart + ResultCount); got < attack.Count || got > attack.Count+2 {
			t.Errorf("result count %d, want %d", got, attack.Count)
		}
		return all
	}
	first := run()
	kinds := make(map[access]int)
	for _, a := range first {
		switch {
		case a.reason == kvm.KVM_EXIT_IO && a.addr+uint64(a.size) > 0x100 && a.addr <= 0x7fff:
			t.Fatalf("access to a skipped port: %+v", a)
		case a.reason == kvm.KVM_EXIT_MMIO && !inWindow(a.addr, attack.MMIO):
			t.Fatalf("access outside the windows: %+v", a)
		}
		kinds[access{reason: a.reason, write: a.write, size: a.size}]++
	}
	// Ports: 3 widths, MMIO: 4 widths and the parts of accesses that cross
	// a page; each in two directions.
	if len(kinds) < 14 {
		t.Errorf("%d kinds of access, want 14: %v", len(kinds), kinds)
	}
	if !reflect.DeepEqual(first, run()) {
		t.Error("the same seed made different accesses")
	}
}

func inWindow(addr uint64, windows []Span) bool {
	for _, w := range windows {
		if addr >= w.First && addr <= w.Last+7 {
			return true
		}
	}
	return false
}

func TestProgramMistakes(t *testing.T) {
	for _, test := range []struct {
		name  string
		build func() ([]byte, error)
		want  string
	}{
		{"no code", func() ([]byte, error) { return Program{}.ELF() }, "without code"},
		{"map too large", func() ([]byte, error) { return Program{Code: []byte{0xf4}, MapGiB: 4096}.ELF() }, "4096 GiB"},
		{"map negative", func() ([]byte, error) { return Program{Code: []byte{0xf4}, MapGiB: -1}.ELF() }, "-1 GiB"},
		{"MMIO too high", func() ([]byte, error) { return MMIOLoop(Read, 8<<30-4, Quad, 1, nil) }, "not mapped"},
		{"MMIO overflow", func() ([]byte, error) { return MMIOLoop(Read, 1<<64-4, Quad, 1, nil) }, "not mapped"},
		{"port quad", func() ([]byte, error) { return PortLoop(Read, 0x80, Quad, 1, nil) }, "port I/O of 8"},
		{"stride", func() ([]byte, error) { return Touch(0, 4096, 3, 1, nil) }, "stride"},
		{"empty range", func() ([]byte, error) { return Touch(4096, 4096, 8, 1, nil) }, "touch 0x1000"},
		{"attack on nothing", func() ([]byte, error) { return Attack{}.ELF() }, "neither"},
		{"odd window", func() ([]byte, error) { return Attack{MMIO: []Span{{0, 2}}}.ELF() }, "power of two"},
		{"window too high", func() ([]byte, error) { return Attack{MMIO: []Span{{8 << 30, 8<<30 + 0xff}}}.ELF() }, "not mapped"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := test.build(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one about %q", err, test.want)
			}
		})
	}
}

func TestELF(t *testing.T) {
	for _, gib := range []int{1, DefaultMapGiB, maxMapGiB} {
		p := program(t)(Program{Code: []byte{1, 2, 3}, MapGiB: gib}.ELF())
		f, err := elf.NewFile(bytes.NewReader(p))
		if err != nil {
			t.Fatal(err)
		}
		if f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC || len(f.Progs) != 3 {
			t.Fatalf("unexpected header %+v", f.FileHeader)
		}
		note := make([]byte, f.Progs[0].Filesz)
		if _, err := f.Progs[0].ReadAt(note, 0); err != nil {
			t.Fatal(err)
		}
		if f.Progs[0].Type != elf.PT_NOTE || string(note[12:16]) != "Xen\x00" || binary.LittleEndian.Uint64(note[16:]) != f.Entry {
			t.Errorf("note % x: want the entry address %#x", note, f.Entry)
		}
		code := make([]byte, 3)
		if _, err := f.Progs[2].ReadAt(code, 0); err != nil || !bytes.Equal(code, []byte{1, 2, 3}) || f.Progs[2].Paddr != CodeStart {
			t.Errorf("code % x at %#x, %v", code, f.Progs[2].Paddr, err)
		}
		if end := f.Progs[1].Paddr + f.Progs[1].Filesz; end > ResultStart {
			t.Errorf("page tables for %d GiB reach to %#x, into the result words", gib, end)
		}
		if off := f.Progs[2].Off + f.Progs[2].Filesz; off != uint64(len(p)) {
			t.Errorf("file of %d bytes, segments end at %d", len(p), off)
		}
	}
}
