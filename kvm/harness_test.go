package kvm

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"runtime"
	"testing"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"golang.org/x/sys/unix"
)

// openSystem opens the machine's KVM, or skips the test where there is none.
func openSystem(t testing.TB) *System {
	t.Helper()
	s, err := Open("")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		testenv.Lacks(t, "needs KVM: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeOK(t, s) })
	return s
}

// softwareKVM tells whether this is kvm_pvm, the KVM that emulates ring 0. Any
// other is hardware, or an emulation of it that is as good.
func softwareKVM() bool {
	_, err := os.Stat("/sys/module/kvm_pvm")
	return err == nil
}

func closeOK(t testing.TB, c interface{ Close() error }) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// ok fails the test at once on an error.
func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Layout of a test guest. Its memory is one slot from address 0 on.
const (
	guestSize  = 1 << 20
	guestPages = guestSize / 4096
	guestSlot  = 3

	pml4Addr  = 0x1000
	pdptAddr  = 0x2000
	pdAddr    = 0x3000
	codeAddr  = 0x10000
	dataAddr  = 0x20000
	stackAddr = 0x30000

	// mmioAddr is inside the 1 GiB that the page tables map, without memory.
	mmioAddr = 0x1000_0000
)

// guest is a VM with one vCPU, ready to run code.
type guest struct {
	t   testing.TB
	sys *System
	vm  *VM
	cpu *VCPU
	mem []byte
}

// newVM makes a VM and closes it at the end of the test.
func newTestVM(t testing.TB) (*System, *VM) {
	t.Helper()
	sys := openSystem(t)
	vm, err := sys.CreateVM()
	ok(t, err)
	t.Cleanup(func() { closeOK(t, vm) })
	return sys, vm
}

// newGuest makes a guest that runs code in 64-bit mode at ring 3 with IOPL 3,
// on identity-mapped page tables: KVM runs that at full speed whatever the
// host's virtualization is. setup, if any, runs before the vCPU is made. The
// test stays on its thread, the vCPU's.
func newGuest(t testing.TB, code []byte, setup ...func(*VM)) *guest {
	t.Helper()
	sys, vm := newTestVM(t)
	for _, f := range setup {
		f(vm)
	}
	mem, err := unix.Mmap(-1, 0, guestSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	ok(t, err)
	t.Cleanup(func() { ok(t, unix.Munmap(mem)) })
	ok(t, vm.SetUserMemoryRegion(guestSlot, 0, 0, mem))
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	cpu, err := vm.CreateVCPU(0)
	ok(t, err)
	t.Cleanup(func() { closeOK(t, cpu) })
	g := &guest{t: t, sys: sys, vm: vm, cpu: cpu, mem: mem}
	g.writePageTables()
	g.enterRing3()
	g.load(code)
	return g
}

// writePageTables maps the first GiB one to one in 2 MiB pages, all of it
// present, writable and open to user mode.
func (g *guest) writePageTables() {
	const flags = 0b111
	put := func(at, entry uint64) { binary.LittleEndian.PutUint64(g.mem[at:], entry) }
	put(pml4Addr, pdptAddr|flags)
	put(pdptAddr, pdAddr|flags)
	for i := range uint64(512) {
		put(pdAddr+8*i, i<<21|1<<7|flags)
	}
}

func (g *guest) enterRing3() {
	s, err := g.cpu.GetSregs()
	ok(g.t, err)
	s.CR0 = 0x80000033 // PG NE ET MP PE
	s.CR3 = pml4Addr
	s.CR4 = 0x620 // OSXMMEXCPT OSFXSR PAE
	s.EFER = 0x500
	s.CS = Segment{Limit: 0xffffffff, Selector: 0x33, Type: 11, Present: 1, DPL: 3, S: 1, L: 1, G: 1}
	data := Segment{Limit: 0xffffffff, Selector: 0x2b, Type: 3, Present: 1, DPL: 3, DB: 1, S: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	ok(g.t, g.cpu.SetSregs(s))
}

// load puts code in memory and the registers at its start.
func (g *guest) load(code []byte) {
	g.t.Helper()
	copy(g.mem[codeAddr:], code)
	ok(g.t, g.cpu.SetRegs(Regs{RIP: codeAddr, RSP: stackAddr, RFLAGS: RFLAGSFixed | 3<<12}))
}

// run runs until the next exit and wants it to be for this reason.
func (g *guest) run(want ExitReason) {
	g.t.Helper()
	for {
		err := g.cpu.Run()
		// Go's runtime sends signals of its own.
		if err == unix.EINTR {
			continue
		}
		ok(g.t, err)
		break
	}
	if got := g.cpu.ExitReason(); got != want {
		regs, _ := g.cpu.GetRegs()
		g.t.Fatalf("exit %v, want %v; internal error %d %x; registers %+v",
			got, want, g.cpu.InternalError().Suberror, g.cpu.InternalError().Instruction(), regs)
	}
}

// runTo runs until the guest writes to a port and wants that to be want.
func (g *guest) runTo(want uint16) IO {
	g.t.Helper()
	g.run(KVM_EXIT_IO)
	io := g.cpu.IO()
	if !io.Write || io.Port != want {
		g.t.Fatalf("port access %+v, want a write to %#x", io, want)
	}
	return io
}
