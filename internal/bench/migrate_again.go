package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/godwit-vmm/godwit/guest/micro"
)

const (
	// againMoves is how often the guest moves in a full run.
	againMoves = 1000
	againRAM   = 64 << 20
	// againUsed is how much of its memory the guest checks, in bytes.
	againUsed = 4 << 20
	firstName = "first tenth"
	lastName  = "last tenth"
)

// How much more a process may hold that gets the guest last than one that gets it first.
const (
	againMemory  = 1.0 // MiB
	againThreads = 2
)

// againRun is the case migrate-again.
type againRun struct {
	env *Env
	t   *traveller
	// metrics have two series: of the first moves and of the last.
	metrics []*Metric
	passes  uint64 // over its memory that the guest had made when it was looked at last
}

// runMigrateAgain has a guest that checks its memory move there and back, and compares
// what the processes hold that had it first with those that had it last.
func runMigrateAgain(ctx context.Context, e *Env) (*Result, error) {
	program, err := writeProgram(e, "check.elf", func(stop micro.Stop) ([]byte, error) {
		return micro.Check(usedStart, usedStart+againUsed, 4096, micro.Forever, stop)
	}, nil)
	if err != nil {
		return nil, err
	}
	t, remove, err := startTraveller(ctx, e, program, againRAM, nil)
	if err != nil {
		return nil, err
	}
	defer remove()
	a := &againRun{env: e, t: t}
	for _, m := range []struct {
		name, unit string
		more       float64 // that the last may be above the first
	}{
		{"time of godwit migrate", "ms", -1}, {"downtime", "ms", -1}, {"private memory", "MiB", againMemory},
		{"open files", "files", 0}, {"threads", "threads", againThreads},
		{"folder of running guests", "entries", 0}, {"journal", "entries", 0}, {"/dev/shm", "entries", 0},
	} {
		metric := &Metric{Name: m.name, Unit: m.unit, Series: []*Series{{Contestant: firstName}, {Contestant: lastName}}}
		if m.more >= 0 {
			metric.goals = []goal{atMostAbove(lastName, firstName, m.more)}
		}
		a.metrics = append(a.metrics, metric)
	}
	moves := e.rounds(againMoves, 10)
	for n := range moves {
		e.progress("move %d of %d", n+1, moves)
		if err := a.move(ctx, n, moves); err != nil {
			return nil, fmt.Errorf("move %d: %w", n+1, err)
		}
	}
	note := fmt.Sprintf("%d moves; the guest has found no difference in %d passes over its memory", moves, a.passes)
	return &Result{Metrics: a.metrics, Notes: []string{note}}, nil
}

// move moves the guest once, has it check its memory, and looks at its process.
func (a *againRun) move(ctx context.Context, n, moves int) error {
	h, err := a.t.move(ctx, "--downtime", "1s", "--timeout", moveTimeout.String())
	if err != nil {
		return err
	}
	if err := a.check(ctx); err != nil {
		return err
	}
	series := 0
	switch tenth := moves / 10; {
	case n < tenth:
	case n >= moves-tenth:
		series = 1
	default:
		return nil
	}
	held, err := holdingsOf(a.t.pid())
	if err != nil {
		return err
	}
	samples := []float64{milliseconds(h.whole), milliseconds(h.Downtime.Total), held.private, held.files, held.threads}
	for _, dir := range []string{os.Getenv(runtimeDir), filepath.Join(os.Getenv("GODWIT_STATE_DIR"), "migrations"), "/dev/shm"} {
		entries, err := countEntries(dir)
		if err != nil {
			return err
		}
		samples = append(samples, entries)
	}
	for i, v := range samples {
		s := a.metrics[i].Series[series]
		s.Samples = append(s.Samples, v)
	}
	return nil
}

// check waits until the guest has looked at all of its memory since it has come.
func (a *againRun) check(ctx context.Context) error {
	words, err := a.t.words()
	if err != nil {
		return err
	}
	defer words.close()
	first, err := words.result()
	if err != nil {
		return err
	}
	if first.Count < a.passes {
		return fmt.Errorf("the guest had made %d passes over its memory, and %d before", first.Count, a.passes)
	}
	// The pass that it is in may have begun before the move.
	return poll(ctx, readyLimit, func() (bool, error) {
		now, err := words.result()
		if err != nil {
			return false, err
		}
		if now.Mismatches > 0 {
			return false, fmt.Errorf("the guest has found %d differences in its memory, the last at %#x", now.Mismatches, now.Detail)
		}
		a.passes = now.Count
		return now.Count >= first.Count+2, nil
	})
}

// result reads what a ready program leaves.
func (g *guestWords) result() (micro.Result, error) {
	p := make([]byte, micro.ResultSize)
	if _, err := g.f.ReadAt(p, micro.ResultStart); err != nil {
		return micro.Result{}, err
	}
	return micro.ReadResult(p)
}
