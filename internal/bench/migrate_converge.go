package bench

import (
	"context"
	"fmt"
	"strconv"

	"github.com/godwit-vmm/godwit/guest/micro"
)

const (
	// convergeRate is how fast the guest writes, in bytes a second, and
	// convergeBandwidth how fast it may be copied.
	convergeRate      = 200e6
	convergeBandwidth = 50_000_000
	// convergeTime is how long the move of such a guest may take, as a multiple of
	// the time for all of its memory.
	convergeTime = 4.0
)

// runMigrateConverge has a guest move that writes to all of its memory faster than it may
// be copied.
func runMigrateConverge(ctx context.Context, e *Env) (*Result, error) {
	used := uint64(256 << 20)
	if e.Quick {
		used = 32 << 20
	}
	ram := used + 2*guestMargin
	khz, err := hostTSCKHz()
	if err != nil {
		return nil, err
	}
	build := func(micro.Stop) ([]byte, error) { return watcher(khz, used, convergeRate, 0) }
	program, err := writeProgram(e, "fast.elf", build, nil)
	if err != nil {
		return nil, err
	}
	once := float64(used) / convergeBandwidth
	total := &Metric{Name: "time until it has moved", Unit: "times that of one copy", goals: []goal{atMost(godwitName, convergeTime)}}
	downtime := &Metric{Name: "downtime that the VMM reports", Unit: "ms"}
	r := &Result{Metrics: []*Metric{total, downtime}, Notes: []string{
		fmt.Sprintf("the guest is to write %g MB/s to %d MiB and is copied with at most %g MB/s: one copy takes %s s", convergeRate/1e6, used>>20, convergeBandwidth/1e6, number(once)),
	}}
	if err := convergeGodwit(ctx, e, r, program, ram, once); err != nil {
		return nil, err
	}
	if e.Quick {
		r.Notes = append(r.Notes, microvmName+" left out: it takes minutes")
		return r, nil
	}
	err = convergeQEMU(ctx, e, r, program, ram, once)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		r.Notes = append(r.Notes, fmt.Sprintf("%s left out: %v", microvmName, err))
	}
	return r, nil
}

func convergeGodwit(ctx context.Context, e *Env, r *Result, program string, ram uint64, once float64) error {
	t, remove, err := startTraveller(ctx, e, program, ram, saidReady())
	if err != nil {
		return err
	}
	defer remove()
	var times, downs, throttles []float64
	rounds := 0
	for n := range e.rounds(5, 1) {
		e.progress("move %d", n+1)
		h, err := t.move(ctx, "--bandwidth", strconv.Itoa(convergeBandwidth), "--auto-converge")
		if err != nil {
			return err
		}
		times, downs = append(times, h.Total.Seconds()/once), append(downs, milliseconds(h.Downtime.Total))
		throttles, rounds = append(throttles, float64(h.Throttle)), max(rounds, h.Rounds)
	}
	r.Metrics[0].add(godwitName, times)
	r.Metrics[1].add(godwitName, downs)
	r.Notes = append(r.Notes, fmt.Sprintf("godwit slowed the guest's processor by %s%% in the end (median), and took at most %d rounds", number(median(throttles)), rounds))
	return nil
}

func convergeQEMU(ctx context.Context, e *Env, r *Result, program string, ram uint64, once float64) error {
	q, err := startQEMUTraveller(ctx, e, program, ram, true)
	defer q.close()
	if err != nil {
		return err
	}
	var times, downs []float64
	for n := range e.rounds(3, 1) {
		e.progress("move %d of %s", n+1, microvmName)
		m, err := q.move(ctx, qemuMove{autoConverge: true, bandwidth: convergeBandwidth})
		if err != nil {
			return err
		}
		times, downs = append(times, m.TotalTime/1e3/once), append(downs, m.Downtime)
	}
	r.Metrics[0].add(microvmName, times)
	r.Metrics[1].add(microvmName, downs)
	return nil
}
