package bench

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/memory"
)

// How long a guest may stand still (issue 5, speed), in ms, in 99 moves of 100.
const (
	downtimeIdle    = 10
	downtimeWriting = 30
)

const (
	// writingRate is what the guest that writes does, in bytes a second.
	writingRate = 100e6
	stayingName = "a guest that stays"
	// moveTimeout bounds how long godwit goes on copying memory.
	moveTimeout = time.Minute
	// mostDowntime is what a guest is allowed that does not get copied in less,
	// in ms. Its sample is then beyond any goal.
	mostDowntime = 1000
)

// downtimeRun is one half of the case: a guest, and what was seen of it.
type downtimeRun struct {
	env     *Env
	what    string
	khz     float64
	rate    float64
	memory  uint64
	program string
	// asked is the downtime that is asked for, in ms.
	asked int
	// stands is how long the guest stood still when it moved, longest the longest
	// that it did so meanwhile, and says what its VMM says. In ms.
	stands, longest, says *Metric
	parts                 map[string][]float64
	notes                 []string
}

// runMigrateDowntime has guests of godwit's move, and then the same ones of QEMU's: two
// guests that read their counter all the time would take the processors from each other.
func runMigrateDowntime(ctx context.Context, e *Env) (*Result, error) {
	r := new(Result)
	for _, half := range []struct {
		what  string
		rate  float64
		limit int
	}{{"idle", heartbeat, downtimeIdle}, {"writing 100 MB/s", writingRate, downtimeWriting}} {
		d := &downtimeRun{env: e, what: half.what, rate: half.rate, asked: half.limit, memory: 1 << 30, parts: make(map[string][]float64)}
		if e.Quick {
			d.memory = 128 << 20
		}
		d.stands = &Metric{Name: "standstill of the move, " + d.what, Unit: "ms", goals: []goal{atMostQuantile(godwitName, 0.99, float64(half.limit))}}
		d.longest = &Metric{Name: "longest standstill in the same time, " + d.what, Unit: "ms"}
		d.says = &Metric{Name: "downtime that the VMM reports, " + d.what, Unit: "ms"}
		if err := d.measure(ctx); err != nil {
			return nil, err
		}
		r.Metrics = append(r.Metrics, d.stands, d.longest, d.says)
		r.Notes = append(r.Notes, d.notes...)
		if len(r.Parts) == 0 {
			r.Parts = d.breakdown()
		}
	}
	return r, nil
}

// measure runs the guest in godwit and in QEMU.
func (d *downtimeRun) measure(ctx context.Context) (err error) {
	if d.khz, err = hostTSCKHz(); err != nil {
		return err
	}
	build := func(micro.Stop) ([]byte, error) { return watcher(d.khz, d.memory-guestMargin, d.rate, watcherSlack) }
	name := strings.Fields(d.what)[0] + ".elf"
	if d.program, err = writeProgram(d.env, name, build, nil); err != nil {
		return err
	}
	if err := d.inGodwit(ctx); err != nil {
		return err
	}
	err = d.inQEMU(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		d.notes = append(d.notes, fmt.Sprintf("%s, %s: left out: %v", microvmName, d.what, err))
	}
	return nil
}

// inGodwit moves the guest, and leaves it alone for as long, in turn.
func (d *downtimeRun) inGodwit(ctx context.Context) error {
	t, remove, err := startTraveller(ctx, d.env, d.program, d.memory, saidReady())
	if err != nil {
		return err
	}
	defer remove()
	if _, err := d.move(ctx, t); err != nil { // warms up
		return err
	}
	var stay, move, stand, says []float64
	began, before, err := d.written(t.words)
	if err != nil {
		return err
	}
	for n := range d.env.rounds(50, 3) {
		d.env.progress("%s: move %d", d.what, n+1)
		var h *hop
		seen, err := d.observe(ctx, t.words, func() error {
			var err error
			h, err = d.move(ctx, t)
			return err
		})
		if err != nil {
			return err
		}
		says = append(says, milliseconds(h.Downtime.Total))
		stand, move = append(stand, seen.move), append(move, seen.longest)
		d.note(h)
		d.env.progress("%s: stay %d", d.what, n+1)
		quiet, err := d.observe(ctx, t.words, func() error { return sleep(ctx, h.whole) })
		if err != nil {
			return err
		}
		stay = append(stay, quiet.longest)
	}
	ended, after, err := d.written(t.words)
	if err != nil {
		return err
	}
	rate := float64(after-before) * memory.PageSize / ended.Sub(began).Seconds() / 1e6
	d.notes = append(d.notes, fmt.Sprintf("%s: the guest has written %s MB/s on average, of %s", d.what, number(rate), number(d.rate/1e6)))
	d.stands.add(godwitName, stand)
	d.longest.add(stayingName, stay)
	d.longest.add(godwitName, move)
	d.says.add(godwitName, says)
	return nil
}

// move moves the guest. One that does not get copied for the downtime that is asked for
// is allowed more.
func (d *downtimeRun) move(ctx context.Context, t *traveller) (*hop, error) {
	for asked := d.asked; ; asked *= 2 {
		h, err := t.move(ctx, "--downtime", fmt.Sprintf("%dms", asked), "--timeout", moveTimeout.String())
		if err == nil || ctx.Err() != nil || asked > mostDowntime {
			return h, err
		}
		d.notes = append(d.notes, fmt.Sprintf("%s: a move was tried again with a longer downtime: %v", d.what, err))
	}
}

// inQEMU moves the guest in QEMU.
func (d *downtimeRun) inQEMU(ctx context.Context) error {
	q, err := startQEMUTraveller(ctx, d.env, d.program, d.memory, true)
	defer q.close()
	if err != nil {
		return err
	}
	var stand, longest, says []float64
	for n := range d.env.rounds(10, 1) + 1 {
		d.env.progress("%s: move %d of %s", d.what, n, microvmName)
		var m migration
		seen, err := d.observe(ctx, q.words, func() error {
			var err error
			m, err = q.move(ctx, qemuMove{downtime: d.asked})
			return err
		})
		if err != nil {
			return err
		}
		if n > 0 { // the first warms up
			stand, longest, says = append(stand, seen.move), append(longest, seen.longest), append(says, m.Downtime)
		}
	}
	d.stands.add(microvmName, stand)
	d.longest.add(microvmName, longest)
	d.says.add(microvmName, says)
	return nil
}

// standstill is what a guest saw, in ms: when it moved, and at most.
type standstill struct{ move, longest float64 }

// observe looks at the guest before and after something is done with it.
func (d *downtimeRun) observe(ctx context.Context, words func() (*guestWords, error), do func() error) (s standstill, err error) {
	before, err := words()
	if err != nil {
		return s, err
	}
	defer before.close()
	if err := before.setWord(watcherLongest, 0); err != nil {
		return s, err
	}
	if err := do(); err != nil {
		return s, err
	}
	after, err := words()
	if err != nil {
		return s, err
	}
	defer after.close()
	// It has looked at its counter since the move when it goes on writing.
	first, err := after.word(watcherWrites)
	if err != nil {
		return s, err
	}
	err = poll(ctx, readyLimit, func() (bool, error) {
		n, err := after.word(watcherWrites)
		return n > first, err
	})
	if err != nil {
		return s, fmt.Errorf("the guest does not go on: %w", err)
	}
	// What the guest had counted when it was stopped is in the memory that it has left.
	var gap, longest uint64
	seen, err := before.word(watcherGaps)
	if err == nil {
		gap, err = after.word(watcherRing + int64(seen%watcherKept)*8)
	}
	if err == nil {
		longest, err = after.word(watcherLongest)
	}
	return standstill{ratio(float64(gap), d.khz), ratio(float64(longest), d.khz)}, err
}

// written says how many pages the guest has written, and when.
func (d *downtimeRun) written(words func() (*guestWords, error)) (time.Time, uint64, error) {
	w, err := words()
	if err != nil {
		return time.Time{}, 0, err
	}
	defer w.close()
	n, err := w.word(watcherWrites)
	return time.Now(), n, err
}

// The parts of the downtime, in their order.
var downtimeParts = []string{
	"pause", "last round of memory", "rest of saving the state", "state, until the destination is ready",
	"of it loading it", "handover", "of it the destination's journal", "of it its start",
}

func (d *downtimeRun) note(h *hop) {
	t := h.Downtime
	for i, took := range []time.Duration{t.Pause, t.LastRound, t.Save, t.State, t.There.Load, t.Handover, t.There.Journal, t.There.Run} {
		d.parts[downtimeParts[i]] = append(d.parts[downtimeParts[i]], milliseconds(took))
	}
}

func (d *downtimeRun) breakdown() []Part {
	var all []Part
	for _, name := range downtimeParts {
		all = append(all, Part{Name: name, Value: median(d.parts[name])})
	}
	return all
}

// add adds a contestant's samples.
func (m *Metric) add(contestant string, samples []float64) {
	m.Series = append(m.Series, &Series{Contestant: contestant, Samples: samples})
}

// sleep waits, unless ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
