package kvm

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// SoftwareNsPerInsn is the line between a KVM that runs ring 0 on the
// processor and one that emulates it, in the unit of ProbeRing0. Processors
// with VMX or SVM measure 0.2 to 1, nested virtualization the same, a whole
// host emulated in software up to 5; a KVM that interprets each instruction
// of the kernel measures hundreds. The line is a factor of ten from either.
const SoftwareNsPerInsn = 50

// ProbeRing0 times a short loop in ring 0 of a throwaway VM and says what an
// instruction costs, in nanoseconds. Compare it with SoftwareNsPerInsn. It
// takes 2 to 3 ms where ring 0 is emulated, half of that for making and closing
// the VM, and about 1 ms elsewhere.
func ProbeRing0(s *System) (nsPerInsn float64, err error) {
	p, err := newProbe(s)
	if err != nil {
		return 0, fmt.Errorf("probe ring 0: %w", err)
	}
	defer p.close()

	// One iteration costs as much as an entry and an exit, which nested in an
	// emulated host can be more than the loop itself.
	base, err := p.fastest(1, 0)
	if err != nil {
		return 0, fmt.Errorf("probe ring 0: %w", err)
	}
	// A short loop tells software from hardware. Where it is hardware, a long
	// one costs nothing and gives a figure above the noise.
	for _, iterations := range []uint64{500, 50_000} {
		insns := (iterations - 1) * probeInsnsPerIteration
		loop, err := p.fastest(iterations, base+time.Duration(insns*SoftwareNsPerInsn))
		if err != nil {
			return 0, fmt.Errorf("probe ring 0: %w", err)
		}
		nsPerInsn = float64(max(loop-base, 0).Nanoseconds()) / float64(insns)
		if nsPerInsn > SoftwareNsPerInsn {
			break
		}
	}
	return nsPerInsn, nil
}

// probeCode counts ECX down to zero and halts. Registers are the only state
// it touches, so that every kind of KVM runs it.
var probeCode = [...]byte{
	0x49,       // dec ecx
	0x75, 0xfd, // jnz to the start
	0xf4, // hlt
}

const (
	probeInsnsPerIteration = 2
	probeCodeAddr          = 0x1000
)

// probe is a VM without interrupt controllers (so that HLT leaves KVM_RUN)
// with two pages of memory and one vCPU in flat 32-bit protected mode.
type probe struct {
	vm  *VM
	cpu *VCPU
	mem []byte
}

func newProbe(s *System) (_ *probe, err error) {
	p := &probe{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.vm, err = s.CreateVM(); err != nil {
		return nil, err
	}
	p.mem, err = unix.Mmap(-1, 0, 2*probeCodeAddr, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", 2*probeCodeAddr, err)
	}
	copy(p.mem[probeCodeAddr:], probeCode[:])
	if err = p.vm.SetUserMemoryRegion(0, 0, 0, p.mem); err != nil {
		return nil, err
	}
	if p.cpu, err = p.vm.CreateVCPU(0); err != nil {
		return nil, err
	}
	sregs, err := p.cpu.GetSregs()
	if err != nil {
		return nil, err
	}
	sregs.CR0 = 0x11 // ET PE; caches on, unlike after reset
	sregs.CS = Segment{Limit: 0xffffffff, Selector: 0x8, Type: 11, Present: 1, DB: 1, S: 1, G: 1}
	data := Segment{Limit: 0xffffffff, Selector: 0x10, Type: 3, Present: 1, DB: 1, S: 1, G: 1}
	sregs.DS, sregs.ES, sregs.FS, sregs.GS, sregs.SS = data, data, data, data, data
	return p, p.cpu.SetSregs(sregs)
}

// fastest runs the loop up to three times and returns the shortest time: noise
// of the host, and the page faults of the first run, only ever add. A time
// below enough needs no second try.
func (p *probe) fastest(iterations uint64, enough time.Duration) (time.Duration, error) {
	best, err := p.time(iterations)
	for try := 1; try < 3 && err == nil && best >= enough; try++ {
		var took time.Duration
		took, err = p.time(iterations)
		best = min(best, took)
	}
	return best, err
}

// time runs the loop and returns how long it took, entry and exit included.
func (p *probe) time(iterations uint64) (time.Duration, error) {
	err := p.cpu.SetRegs(Regs{RIP: probeCodeAddr, RCX: iterations, RFLAGS: RFLAGSFixed})
	if err != nil {
		return 0, err
	}
	start := time.Now()
	for {
		switch err := p.cpu.Run(); err {
		case nil:
		case unix.EINTR, unix.EAGAIN:
			continue // a signal, for instance one of Go's own
		default:
			return 0, fmt.Errorf("kvm: %v: %w", KVM_RUN, err)
		}
		break
	}
	took := time.Since(start)
	if reason := p.cpu.ExitReason(); reason != KVM_EXIT_HLT {
		return 0, fmt.Errorf("the loop ended in %v, not %v", reason, KVM_EXIT_HLT)
	}
	return took, nil
}

func (p *probe) close() {
	// Nothing depends on how a VM goes that nobody else saw. Memory is
	// unmapped last.
	if p.cpu != nil {
		p.cpu.Close()
	}
	if p.vm != nil {
		p.vm.Close()
	}
	if p.mem != nil {
		unix.Munmap(p.mem)
	}
}
