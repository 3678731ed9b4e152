package bench

import (
	"slices"
	"time"
)

// loopName is the floor of a device: a loop of system calls that do what the guest
// asks for, one at a time.
const loopName = "plain loop"

// newDeviceResult is the result of a case whose rounds have a name. The goals are
// about the time of one.
func newDeviceResult(round string, goals ...goal) *Result {
	return &Result{
		Metrics: []*Metric{
			{Name: "time of a " + round, Unit: "µs", goals: goals},
			{Name: "user + system", Unit: "µs per " + round},
		},
		Notes: []string{"processor time includes that of the guest, which polls, and of QEMU's start"},
	}
}

// addLatencies is for cases in which the guest knows when a round begins.
func (r *Result) addLatencies() {
	r.Metrics = append(r.Metrics, &Metric{Name: "latency, median", Unit: "µs"}, &Metric{Name: "latency, 99%", Unit: "µs"})
}

// samplesOf are as many of the samples as the result has metrics.
func (r *Result) samplesOf(all []float64, err error) ([]float64, error) {
	return all[:min(len(all), len(r.Metrics))], err
}

// deviceAllocated allows for a few allocations of the runtime in a run of a thousand
// rounds.
const deviceAllocated = 0.01

// countDeviceAllocations compares runs of n rounds with runs of few, because what a
// start and an end allocate is in both.
func (r *Result) countDeviceAllocations(e *Env, n uint64, run func(rounds uint64) (*deviceRun, error)) error {
	few := n / 10
	s := &Series{Contestant: godwitName}
	for range e.rounds(5, 2) {
		e.progress("counting allocations")
		base, err := run(few)
		if err != nil {
			return err
		}
		all, err := run(n)
		if err != nil {
			return err
		}
		more := float64(all.mallocs) - float64(base.mallocs)
		s.Samples = append(s.Samples, max(0, more/float64(n-few)))
	}
	r.Metrics = append(r.Metrics, &Metric{
		Name: "allocations", Unit: "per round", Series: []*Series{s},
		goals: []goal{atMost(godwitName, deviceAllocated)},
	})
	return nil
}

// plainLoop times the steps of a floor as a guest does its rounds: a number of them
// to warm up first.
type plainLoop struct {
	warmup uint64
	began  time.Time
	cpu    float64 // µs of this process at began
	times  []float64
}

func newPlainLoop(warmup, rounds uint64) *plainLoop {
	l := &plainLoop{warmup: warmup, times: make([]float64, 0, rounds)}
	l.restart()
	return l
}

func (l *plainLoop) restart() { l.began, l.cpu = time.Now(), cpuTime() }

// step does a round.
func (l *plainLoop) step(do func() error) error {
	start := time.Now()
	if err := do(); err != nil {
		return err
	}
	if l.warmup > 0 {
		l.warmup--
		l.restart()
		return nil
	}
	l.times = append(l.times, float64(time.Since(start).Nanoseconds())/1e3)
	return nil
}

// samples are those of timings.
func (l *plainLoop) samples() []float64 {
	n := float64(len(l.times))
	each := float64(time.Since(l.began).Nanoseconds()) / 1e3 / n
	cpu := (cpuTime() - l.cpu) / n
	slices.Sort(l.times)
	return []float64{each, cpu, quantile(l.times, 0.5), quantile(l.times, 0.99)}
}
