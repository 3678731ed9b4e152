package bench

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/hostmem"
)

// downtimeLocal is how long a guest may stand still that moves to another process of its
// host, in ms, in 99 moves of 100.
const downtimeLocal = 10

// localUsed bounds how much of its memory a guest uses, in bytes: to touch a page first
// takes long where KVM is software.
const localUsed = 2 << 30

// runMigrateLocal has guests of two sizes move from process to process on this host: how
// long they stand still does not depend on their size, nor on how much of it they use.
func runMigrateLocal(ctx context.Context, e *Env) (*Result, error) {
	sizes := []uint64{1 << 30, 8 << 30}
	if e.Quick {
		sizes = []uint64{128 << 20, 1 << 30}
	}
	r := new(Result)
	for _, size := range sizes {
		if err := hostmem.Enough(size, false); err != nil {
			r.Notes = append(r.Notes, fmt.Sprintf("%d MiB: left out: %v", size>>20, err))
			continue
		}
		if err := migrateLocal(ctx, e, size, r); err != nil {
			return nil, err
		}
	}
	if len(r.Metrics) == 0 {
		return nil, Skip("%s", r.Notes[0])
	}
	return r, nil
}

// migrateLocal has one guest move.
func migrateLocal(ctx context.Context, e *Env, size uint64, r *Result) error {
	khz, err := hostTSCKHz()
	if err != nil {
		return err
	}
	used := min(size-guestMargin, localUsed)
	what := fmt.Sprintf("%d MiB, %d in use", size>>20, used>>20)
	d := &downtimeRun{env: e, what: what, khz: khz, parts: make(map[string][]float64)}
	program, err := writeProgram(e, fmt.Sprintf("local-%d.elf", size>>20), func(micro.Stop) ([]byte, error) {
		return watcher(khz, used, heartbeat, watcherSlack)
	}, nil)
	if err != nil {
		return err
	}
	t, remove, err := startTraveller(ctx, e, program, size, saidReady())
	if err != nil {
		return err
	}
	defer remove()
	t.local = true
	stands := &Metric{Name: "longest standstill while it moves, " + what, Unit: "ms", goals: []goal{atMostQuantile(godwitName, 0.99, downtimeLocal)}}
	says := &Metric{Name: "downtime that the VMM reports, " + what, Unit: "ms"}
	whole := &Metric{Name: "time of godwit migrate, " + what, Unit: "ms"}
	var stay, move, reported, took []float64
	for n := range e.rounds(50, 5) + 1 {
		e.progress("%s: move %d", what, n)
		var h *hop
		seen, err := d.observe(ctx, t.words, func() (err error) {
			h, err = t.move(ctx)
			return err
		})
		if err != nil {
			return err
		}
		quiet, err := d.observe(ctx, t.words, func() error { return sleep(ctx, h.whole) })
		if err != nil {
			return err
		}
		if h.Shared != size || h.Bytes != 0 {
			return fmt.Errorf("%d bytes of %d were passed on, and %d copied", h.Shared, size, h.Bytes)
		}
		if n == 0 {
			continue // warms up
		}
		stay, move = append(stay, quiet.longest), append(move, seen.longest)
		reported, took = append(reported, milliseconds(h.Downtime.Total)), append(took, milliseconds(h.whole))
		d.note(h)
	}
	stands.add(stayingName, stay)
	stands.add(godwitName, move)
	says.add(godwitName, reported)
	whole.add(godwitName, took)
	r.Metrics = append(r.Metrics, stands, says, whole)
	if len(r.Parts) == 0 {
		r.Parts = d.breakdown()
	}
	return nil
}

// receiving is where the guest's next process listens, and what the guest is called there.
func (t *traveller) receiving() []string {
	if t.local {
		// It keeps its name.
		return []string{"--listen", "unix:" + filepath.Join(t.env.Dir, fmt.Sprintf("receive-%d", t.hops))}
	}
	return []string{"--listen", "127.0.0.1:0", "--name", t.nameAt(t.hops + 1)}
}
