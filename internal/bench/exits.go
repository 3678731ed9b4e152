package bench

import (
	"context"
	"fmt"
	"runtime"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

// What an exit may cost (issue 2, acceptance 4). Allocations are counted in the
// whole process, where the runtime makes a few of its own: less than one in a
// thousand exits counts as none.
const (
	exitOfFloor   = 1.10
	noAllocations = 0.001
)

// scratch is the scratch register of the second serial port: a device that
// takes a write and does nothing about it.
const scratch = devices.COM2Port + 7

// runPortIO writes to a port in a loop.
func runPortIO(ctx context.Context, e *Env) (*Result, error) {
	return runExits(ctx, e, func(n uint64) ([]byte, error) {
		return micro.PortLoop(micro.Write, scratch, micro.Byte, n, micro.PowerOff())
	})
}

// runMMIO writes to the index register of the I/O APIC in a loop.
func runMMIO(ctx context.Context, e *Env) (*Result, error) {
	return runExits(ctx, e, func(n uint64) ([]byte, error) {
		return micro.MMIOLoop(micro.Write, uint64(memory.IOAPICStart), micro.Long, n, micro.PowerOff())
	})
}

// exitLoop is a guest that makes exits between two time stamps.
type exitLoop struct {
	program string
	exits   uint64
}

func newExitLoop(e *Env, exits uint64, build func(n uint64) ([]byte, error)) (exitLoop, error) {
	name := fmt.Sprintf("exits-%d.elf", exits)
	program, err := writeProgram(e, name, func(micro.Stop) ([]byte, error) { return build(exits) }, nil)
	return exitLoop{program, exits}, err
}

// runExits compares the C floor with a machine in this process on a guest that
// build makes. The guest times itself by its time stamp counter.
func runExits(ctx context.Context, e *Env, build func(n uint64) ([]byte, error)) (*Result, error) {
	sys, err := kvm.Open("")
	if err != nil {
		return nil, Skip("%v", err)
	}
	defer sys.Close()
	floor, err := buildFloor(ctx, e)
	if err != nil {
		return nil, err
	}
	loop, err := newExitLoop(e, 5000, build)
	if err != nil {
		return nil, err
	}
	r := &Result{Metrics: []*Metric{
		{Name: "round trip", Unit: "ns", goals: []goal{atMostTimes(godwitName, exitOfFloor, floorName)}},
		{Name: "user + system", Unit: "ns"},
	}}
	var khz float64 // the floor says it for both
	err = r.compete(ctx, e, e.rounds(25, 5),
		contestant{name: floorName, run: func(ctx context.Context) ([]float64, error) {
			_, t, err := floor.run(ctx, loop.program)
			if err != nil {
				return nil, err
			}
			if khz = t.KHz; t.Exits <= loop.exits || khz <= 0 {
				return nil, fmt.Errorf("%d exits for a loop of %d, TSC at %g kHz", t.Exits, loop.exits, khz)
			}
			return loop.perExit(t.TSC, khz, t.CPU), nil
		}},
		contestant{name: godwitName, run: func(ctx context.Context) ([]float64, error) {
			run, err := runMachine(ctx, sys, loop)
			return loop.perExit(run.tsc, khz, run.cpu), err
		}},
	)
	if err != nil {
		return nil, err
	}
	allocations, err := countAllocations(ctx, e, sys, build)
	if err != nil {
		return nil, err
	}
	r.Metrics = append(r.Metrics, allocations)
	return r, nil
}

// perExit turns what a run took into nanoseconds: by the guest's clock, and of
// processor time, given in microseconds.
func (l exitLoop) perExit(tsc uint64, khz, cpu float64) []float64 {
	n := float64(l.exits)
	return []float64{ratio(float64(tsc), khz) * 1e6 / n, cpu * 1e3 / n}
}

// countAllocations compares a run of many exits with one of few, because what
// a start and an end allocate is in both.
func countAllocations(ctx context.Context, e *Env, sys *kvm.System, build func(n uint64) ([]byte, error)) (*Metric, error) {
	few, err := newExitLoop(e, 1000, build)
	if err != nil {
		return nil, err
	}
	many, err := newExitLoop(e, 21_000, build)
	if err != nil {
		return nil, err
	}
	s := &Series{Contestant: godwitName}
	for range e.rounds(5, 3) {
		e.progress("counting allocations")
		base, err := runMachine(ctx, sys, few)
		if err != nil {
			return nil, err
		}
		run, err := runMachine(ctx, sys, many)
		if err != nil {
			return nil, err
		}
		more := float64(run.mallocs) - float64(base.mallocs)
		s.Samples = append(s.Samples, max(0, more/float64(many.exits-few.exits)))
	}
	return &Metric{
		Name: "allocations", Unit: "per exit", Series: []*Series{s},
		goals: []goal{atMost(godwitName, noAllocations)},
	}, nil
}

// machineRun is what a run of a machine in this process took.
type machineRun struct {
	tsc     uint64  // between the guest's two time stamps
	cpu     float64 // µs of user and system time while the guest ran
	mallocs uint64  // by this process while the guest ran
}

// runMachine runs a micro-guest to its end.
func runMachine(ctx context.Context, sys *kvm.System, loop exitLoop) (machineRun, error) {
	m, err := machine.New(sys, machine.Config{Name: "bench", CPUs: 1, Memory: 128 << 20, Kernel: loop.program})
	if err != nil {
		return machineRun{}, err
	}
	defer m.Close()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu := cpuTime()
	outcome, err := m.Run(ctx)
	cpu = cpuTime() - cpu
	runtime.ReadMemStats(&after)
	if err != nil {
		return machineRun{}, err
	}
	if outcome != machine.PoweredOff {
		return machineRun{}, fmt.Errorf("the micro-guest %v instead of powering off", outcome)
	}
	first, err := m.Memory().Uint64(micro.ResultStart + micro.ResultFirstTSC)
	if err != nil {
		return machineRun{}, err
	}
	last, err := m.Memory().Uint64(micro.ResultStart + micro.ResultLastTSC)
	if err != nil {
		return machineRun{}, err
	}
	return machineRun{tsc: last - first, cpu: cpu, mallocs: after.Mallocs - before.Mallocs}, nil
}

// cpuTime is the processor time of this process so far, in microseconds.
func cpuTime() float64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e3
}
