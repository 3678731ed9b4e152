package live

import (
	"context"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/migrate/handover"
)

// Waits are how long the timers of a handover take.
type Waits struct {
	// Ready is how long the source stays paused for READY, and Commit how long the
	// destination waits for COMMIT before it refuses.
	Ready, Commit time.Duration
	// Again is how long it takes until something is said or tried again, the first
	// time; it doubles up to AgainMost.
	Again, AgainMost time.Duration
	// Silence is how long a source may send nothing until its guest is complete; 0 is
	// that of DefaultWaits.
	Silence time.Duration
}

// DefaultWaits are for networks between hosts.
var DefaultWaits = Waits{Ready: 20 * time.Second, Commit: 30 * time.Second, Again: 200 * time.Millisecond, AgainMost: 5 * time.Second, Silence: time.Minute}

// part is what a driver does for one side of a handover. They are called one at a time,
// by the goroutine that calls run.
type part struct {
	// step is that of the state machine, final whether it has ended.
	step  func(handover.Event) []handover.Action
	final func() bool
	// decided, if set, says that the journal's record tells the peer all that this side
	// still could: without a link there is nothing to wait for then.
	decided func() bool
	// slot is where the journal's record is.
	slot  *handover.Slot
	trace Trace

	takeLocks, dropLocks func() error
	run                  func() error // only the destination has it
	resume, destroy      func()
	report               func(handover.Phase, string)
}

// driver carries out what a state machine of package handover wants.
type driver struct {
	part
	waits Waits
	// again is how often each timer has been set that takes longer each time, and timers
	// are those that are set.
	again  map[handover.Timer]int
	timers map[handover.Timer]*time.Timer

	events chan handover.Event
	// wrote is how long the last record took to write.
	wrote time.Duration
	// next are events that the last action has led to.
	next []handover.Event
	over chan struct{} // closed when run returns

	mu   sync.Mutex
	link *control // nil when there is none
}

func newDriver(p part, w Waits) *driver {
	if w == (Waits{}) {
		w = DefaultWaits
	}
	return &driver{part: p, waits: w, again: make(map[handover.Timer]int), timers: make(map[handover.Timer]*time.Timer), events: make(chan handover.Event, 64), over: make(chan struct{})}
}

// run takes events until the machine has ended, or ctx. It begins with what the machine
// wants first.
func (d *driver) run(ctx context.Context, first []handover.Action) error {
	defer close(d.over)
	d.do(first)
	for {
		for len(d.next) > 0 {
			e := d.next[0]
			d.next = d.next[1:]
			d.do(d.step(e))
		}
		if d.final() || d.decided != nil && d.decided() && !d.linked() {
			return nil
		}
		select {
		case e := <-d.events:
			d.next = append(d.next, e)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// post has an event taken. Any goroutine may call it but that of run, and those that this
// one waits for.
func (d *driver) post(e handover.Event) { d.postUnless(nil, e) }

// postUnless is post for a goroutine that the one of run may wait for: never makes it end.
func (d *driver) postUnless(never <-chan struct{}, e handover.Event) {
	select {
	case d.events <- e:
	case <-d.over:
	case <-never:
	}
}

// pass passes on what the guest's end and an operator have to say.
func (d *driver) pass(ctx context.Context, died <-chan struct{}, orders <-chan handover.Event) {
	for {
		select {
		case <-died:
			died = nil
			d.post(handover.Event{Kind: handover.GuestDied, Reason: "the guest has ended"})
		case e, open := <-orders:
			if !open {
				orders = nil
				continue
			}
			d.post(e)
		case <-ctx.Done():
			return
		}
	}
}

func (d *driver) do(actions []handover.Action) {
	for _, a := range actions {
		d.act(a)
	}
}

func (d *driver) act(a handover.Action) {
	switch a.Kind {
	case handover.WriteJournal:
		began := time.Now()
		err := d.trace.around(OpJournal, record(a.Entry), func() error { return d.slot.Write(a.Entry) })
		d.wrote = time.Since(began)
		d.then(handover.Outcome(err))
	case handover.Forget:
		// Nothing depends on it.
		_ = d.slot.Remove()
	case handover.Send:
		d.say(a.Message)
	case handover.TakeLocks:
		if err := d.trace.around(OpLocks, "take", d.takeLocks); err != nil {
			d.then(handover.Event{Kind: handover.LocksRefused, Reason: err.Error()})
		} else {
			d.then(handover.Event{Kind: handover.LocksTaken})
		}
	case handover.DropLocks:
		// A lock that cannot be dropped is one that the other side cannot take:
		// it refuses then.
		_ = d.trace.around(OpLocks, "drop", d.dropLocks)
		d.then(handover.Event{Kind: handover.LocksDropped})
	case handover.Run:
		if err := d.trace.around(OpRun, "guest", d.part.run); err != nil {
			d.destroy() // what of it is there
			d.then(handover.Event{Kind: handover.GuestDied, Reason: err.Error()})
		}
	case handover.Resume:
		d.resume()
	case handover.Destroy:
		d.destroy()
	case handover.SetTimer:
		d.setTimer(a.Timer)
	case handover.Report:
		d.report(a.Phase, a.Reason)
	}
}

// record is what a journal entry says, for Trace.
func record(e handover.Entry) string {
	if e.Role == handover.RoleDestination && e.Settled {
		return "settled"
	}
	return e.State.String()
}

func (d *driver) then(e handover.Event) { d.next = append(d.next, e) }

// setTimer starts a timer, anew if it is set: else each time that the link comes back
// there would be one more that goes on for ever.
func (d *driver) setTimer(t handover.Timer) {
	if old := d.timers[t]; old != nil {
		old.Stop()
	}
	d.timers[t] = time.AfterFunc(d.wait(t), func() { d.post(handover.Event{Kind: handover.TimerFired, Timer: t}) })
}

// wait is how long a timer takes this time.
func (d *driver) wait(t handover.Timer) time.Duration {
	switch t {
	case handover.AwaitReady:
		return d.waits.Ready
	case handover.AwaitCommit:
		return d.waits.Commit
	}
	n := d.again[t]
	d.again[t]++
	return min(d.waits.Again<<min(n, 16), d.waits.AgainMost)
}

// say sends a message if there is a link; else it is lost.
func (d *driver) say(m handover.Message) {
	d.mu.Lock()
	link := d.link
	d.mu.Unlock()
	if link == nil {
		return
	}
	if err := link.send(frameHandover, m.Encode()); err != nil {
		// Whoever reads there finds out, too.
		_ = link.conn.Close()
	}
}

// linked says whether there is a link.
func (d *driver) linked() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.link != nil
}

// attach has the two sides talk on a connection from now on.
func (d *driver) attach(c *control) {
	d.mu.Lock()
	old := d.link
	d.link = c
	d.mu.Unlock()
	if old != nil {
		_ = old.conn.Close()
	}
}

// detach forgets a connection that was lost, unless there is another one by now, which
// it tells.
func (d *driver) detach(c *control) bool {
	_ = c.conn.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.link != c {
		return false
	}
	d.link = nil
	return true
}

// listen passes on what comes on a connection, until that is lost. Frames of the one other
// kind that may come go to hear.
func (d *driver) listen(c *control, other kind, hear func([]byte) error) error {
	for {
		k, body, err := c.receive(frameHandover, other)
		if err != nil {
			return err
		}
		if k != frameHandover {
			if err := hear(body); err != nil {
				return err
			}
			continue
		}
		m, err := handover.DecodeMessage(body)
		if err != nil {
			return err
		}
		d.post(handover.Event{Kind: handover.Received, Message: m})
	}
}
