package micro

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/kvm"
	"golang.org/x/sys/unix"
)

// guest is a micro-guest in a minimal VMM: one vCPU, some RAM, every access
// answered by the test.
type guest struct {
	t   *testing.T
	vm  *kvm.VM
	cpu *kvm.VCPU
	ram []byte
	// sregs are those after a reset.
	sregs kvm.Sregs
}

const (
	testRAM   = 32 << 20
	startInfo = 0x6000 // hvm_start_info; nothing reads it in these tests
)

// newGuest loads the program and leaves the processor at its PVH entry.
func newGuest(t *testing.T, program []byte) *guest {
	t.Helper()
	ram, err := unix.Mmap(-1, 0, testRAM, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(ram) })
	return newGuestIn(t, ram, program)
}

// newGuestIn is newGuest with memory that somebody else made.
func newGuestIn(t *testing.T, ram, program []byte) *guest {
	t.Helper()
	sys, err := kvm.Open("")
	if err != nil {
		testenv.Lacks(t, "micro-guests need KVM: %v", err)
	}
	vm, err := sys.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Close(); sys.Close() })
	g := &guest{t: t, vm: vm, ram: ram}
	g.must(vm.EnableSplitIRQChip(24))
	g.must(vm.SetUserMemoryRegion(0, 0, 0, g.ram))
	g.cpu, err = vm.CreateVCPU(0)
	g.must(err)
	t.Cleanup(func() { g.cpu.Close() })
	cpuid, err := sys.SupportedCPUID()
	g.must(err)
	g.must(g.cpu.SetCPUID2(cpuid))
	g.sregs, err = g.cpu.GetSregs()
	g.must(err)
	g.enter(program)
	return g
}

func (g *guest) must(err error) {
	if err != nil {
		g.t.Helper()
		g.t.Fatal(err)
	}
}

// enter loads a program and leaves the processor at its entry.
func (g *guest) enter(program []byte) {
	g.t.Helper()
	clear(g.ram[ResultStart : ResultStart+ResultSize])
	f, err := elf.NewFile(bytes.NewReader(program))
	g.must(err)
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD {
			_, err := p.ReadAt(g.ram[p.Paddr:p.Paddr+p.Filesz], 0)
			g.must(err)
		}
	}
	s := g.sregs
	flat := kvm.Segment{Limit: 0xffff_ffff, Selector: 0x18, Type: 3, Present: 1, DB: 1, S: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = flat, flat, flat, flat, flat
	s.CS = flat
	s.CS.Selector, s.CS.Type = 0x10, 11
	s.CR0 = 1
	g.must(g.cpu.SetSregs(s))
	g.must(g.cpu.SetRegs(kvm.Regs{RIP: f.Entry, RBX: startInfo, RFLAGS: kvm.RFLAGSFixed}))
}

// access is one exit of the guest: a port or MMIO access, or its end.
type access struct {
	reason kvm.ExitReason
	addr   uint64 // or port
	write  bool
	size   int
	value  uint64 // of a write
}

// next runs the guest to its next exit. Reads are answered with all ones.
func (g *guest) next() access {
	g.t.Helper()
	for {
		err := g.cpu.Run()
		if errors.Is(err, unix.EINTR) {
			continue
		}
		g.must(err)
		break
	}
	a := access{reason: g.cpu.ExitReason()}
	var data []byte
	switch a.reason {
	case kvm.KVM_EXIT_IO:
		io := g.cpu.IO()
		a.addr, a.write, data = uint64(io.Port), io.Write, io.Data
	case kvm.KVM_EXIT_MMIO:
		io := g.cpu.MMIO()
		a.addr, a.write, data = io.Addr, io.Write, io.Data
	}
	a.size = len(data)
	if a.write {
		var v [8]byte
		copy(v[:], data)
		a.value = binary.LittleEndian.Uint64(v[:])
		return a
	}
	for i := range data {
		data[i] = 0xff
	}
	return a
}

func (g *guest) word(addr uint64) uint64 { return binary.LittleEndian.Uint64(g.ram[addr:]) }

// runFor runs a guest that never exits until done, which is asked whenever a
// signal interrupted KVM_RUN. One comes every d, so that none needs to be
// certain to hit. The caller has locked its thread.
func (g *guest) runFor(d time.Duration, done func() bool) {
	g.t.Helper()
	tid := unix.Gettid()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(d):
				_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGUSR1)
			}
		}
	}()
	deadline := time.Now().Add(30 * time.Second)
	for !done() {
		if err := g.cpu.Run(); !errors.Is(err, unix.EINTR) {
			g.t.Fatalf("run ended with error %v, exit %v: want it interrupted", err, g.cpu.ExitReason())
		}
		if time.Now().After(deadline) {
			g.t.Fatal("no progress")
		}
	}
}
