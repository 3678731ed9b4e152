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
)

// What an exit may cost (issue 2, acceptance 4). The guests are timed by their
// own time stamp counter; allocations are counted in the whole process, where
// the runtime makes a few of its own, so that less than one in a thousand exits
// counts as none.
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

// runExits compares the C floor with a machine in this process on a guest that
// loop builds: n exits between two time stamps.
func runExits(ctx context.Context, e *Env, loop func(n uint64) ([]byte, error)) (*Result, error) {
	sys, err := kvm.Open("")
	if err != nil {
		return nil, Skip("%v", err)
	}
	defer sys.Close()
	floor, err := buildFloor(ctx, e)
	if err != nil {
		return nil, err
	}
	exits := uint64(e.rounds(20_000, 4_000))
	build := func(name string, n uint64) (string, error) {
		return writeProgram(e, name, func(micro.Stop) ([]byte, error) { return loop(n) }, nil)
	}
	program, err := build("loop.elf", exits)
	if err != nil {
		return nil, err
	}
	short, err := build("short.elf", exits/4)
	if err != nil {
		return nil, err
	}

	perExit := &Metric{Name: "round trip", Unit: "ns", goals: []goal{atMostTimes(godwitName, exitOfFloor, floorName)}}
	r := &Result{Metrics: []*Metric{perExit}}
	var khz float64
	err = r.compete(ctx, e, e.rounds(9, 3),
		contestant{name: floorName, run: func(ctx context.Context) ([]float64, error) {
			_, t, err := floor.run(ctx, program)
			if err == nil && (t.Exits <= exits || t.KHz <= 0) {
				err = fmt.Errorf("%d exits for a loop of %d, TSC at %g kHz", t.Exits, exits, t.KHz)
			}
			khz = t.KHz
			return []float64{nanoseconds(t.TSC, exits, khz)}, err
		}},
		contestant{name: godwitName, run: func(ctx context.Context) ([]float64, error) {
			run, err := runMachine(ctx, sys, program)
			return []float64{nanoseconds(run.tsc, exits, khz)}, err
		}},
	)
	if err != nil {
		return nil, err
	}
	allocations := &Metric{Name: "allocations", Unit: "per exit", goals: []goal{atMost(godwitName, noAllocations)}}
	s := &Series{Contestant: godwitName}
	for range e.rounds(5, 3) {
		e.progress("counting allocations")
		few, err := runMachine(ctx, sys, short)
		if err != nil {
			return nil, err
		}
		many, err := runMachine(ctx, sys, program)
		if err != nil {
			return nil, err
		}
		// What a start and an end allocate is in both.
		more := float64(many.mallocs) - float64(few.mallocs)
		s.Samples = append(s.Samples, max(0, more/float64(exits-exits/4)))
	}
	allocations.Series = []*Series{s}
	r.Metrics = append(r.Metrics, allocations)
	return r, nil
}

// nanoseconds is the time of one of n exits.
func nanoseconds(tsc, n uint64, khz float64) float64 {
	if n == 0 || khz == 0 {
		return 0
	}
	return float64(tsc) / khz * 1e6 / float64(n)
}

// machineRun is what a run of a machine in this process took.
type machineRun struct {
	tsc     uint64 // between the guest's two time stamps
	mallocs uint64 // by this process while the guest ran
}

// runMachine runs a micro-guest to its end.
func runMachine(ctx context.Context, sys *kvm.System, program string) (machineRun, error) {
	m, err := machine.New(sys, machine.Config{Name: "bench", CPUs: 1, Memory: 128 << 20, Kernel: program})
	if err != nil {
		return machineRun{}, err
	}
	defer m.Close()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	outcome, err := m.Run(ctx)
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
	return machineRun{tsc: last - first, mallocs: after.Mallocs - before.Mallocs}, nil
}
