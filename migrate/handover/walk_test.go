package handover

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// change is something that can happen in a world.
type change struct {
	side side
	name string
	do   func(*world, machine) error
}

// edge is how a world was reached first.
type edge struct {
	from uint64
	name string
}

// walk goes through all worlds that can be reached, nearest first, and stops at the
// first for which check has an error. It returns how many there are.
func walk(m machine, check func(world) error) (int, error) {
	first := newWorld().plain()
	seen := map[uint64]edge{first.key(): {}}
	for now := []world{first}; len(now) > 0; {
		var next []world
		for _, w := range now {
			from := w.key()
			for _, c := range w.changes() {
				after := w
				err := c.do(&after, m)
				after = after.plain()
				if err == nil {
					err = after.broken()
				}
				_, old := seen[after.key()]
				if err == nil && !old {
					err = check(after)
				}
				if err != nil {
					return len(seen), fmt.Errorf("%w\n%s\n%s", err, way(seen, from), c)
				}
				if !old {
					seen[after.key()] = edge{from: from, name: c.String()}
					next = append(next, after)
				}
			}
		}
		now = next
	}
	return len(seen), nil
}

// way is what happened up to a world.
func way(seen map[uint64]edge, to uint64) string {
	var steps []string
	for e := seen[to]; e.name != ""; e = seen[e.from] {
		steps = append(steps, e.name)
	}
	slices.Reverse(steps)
	return strings.Join(steps, "\n")
}

func (c change) String() string { return [...]string{"source: ", "destination: "}[c.side] + c.name }

// changes is all that can happen in a world, faults included.
func (w world) changes() []change {
	var all []change
	for s := range w.hosts {
		all = append(all, w.changesOf(side(s))...)
	}
	return all
}

func (w world) changesOf(s side) []change {
	h := w.hosts[s]
	var all []change
	add := func(name string, do func(*world, machine) error) {
		all = append(all, change{side: s, name: name, do: do})
	}
	happen := func(name string, e Event) {
		add(name, func(w *world, m machine) error {
			_, err := w.step(m, s, e)
			return err
		})
	}
	if h.fenced {
		return nil
	}
	if w.mayFence(s) {
		add("is fenced", func(w *world, _ machine) error {
			w.crash(s, h.disk)
			w.hosts[s].fenced = true
			return nil
		})
	}
	if !h.up {
		add("starts again", func(w *world, m machine) error { _, err := w.restart(s); return err })
		add("has its record pruned", func(w *world, m machine) error { w.prune(m, s); return nil })
		return all
	}
	for r := range record(len(entries[src])) {
		if h.readable()&(1<<r) != 0 {
			add(fmt.Sprintf("crashes with record %d", r), func(w *world, _ machine) error {
				w.crash(s, 1<<r)
				return nil
			})
		}
	}
	for _, v := range listens[s] {
		if w.sky&letter(s.other(), v) != 0 {
			happen("hears "+v.String(), w.hear(v))
		}
	}
	for _, k := range w.ends(s) {
		add(k.String(), func(w *world, m machine) error { _, err := w.end(m, s, k); return err })
	}
	for t := AwaitReady; t <= Retry; t++ {
		happen("timer to "+t.String(), Event{Kind: TimerFired, Timer: t})
	}
	for _, k := range []EventKind{LinkLost, LinkBack, Failed, Cancel} {
		happen(k.String(), Event{Kind: k})
	}
	if w.hosts[s.other()].fenced {
		happen("is forced to run", Event{Kind: ForceRun, Reason: "fenced"})
	}
	add("guest dies", func(w *world, m machine) error {
		w.died = w.died || w.loses(s)
		w.hosts[s].running = false
		_, err := w.step(m, s, Event{Kind: GuestDied})
		return err
	})
	if w.canMove(s) {
		add("moves on", func(w *world, m machine) error { _, err := w.moveOn(m, s); return err })
	}
	return all
}

func (w world) hear(v Verb) Event {
	return Event{Kind: Received, Message: Message{Verb: v, ID: walkID, Epoch: walkEpoch}}
}

// mayFence is what an operator has to look at before an order by force: a side that may
// have gone on with the guest must not be replaced by the state that was sent.
func (w world) mayFence(s side) bool {
	other := w.hosts[s.other()]
	if !other.up || other.fenced {
		return false
	}
	if s == src {
		return w.sent && !w.ranOn && w.destination.state == DestinationReady && !w.ran
	}
	return !w.ran && w.source.state == SourceReleased
}

// ends are the events that can end what is under way on a side. Locks may be taken even
// if the other side has them: those of a block device are not known to other hosts.
func (w world) ends(s side) []EventKind {
	var all []EventKind
	if w.hosts[s].writing != nothing {
		all = append(all, JournalDone, JournalFailed, JournalUnknown)
	}
	switch w.hosts[s].locks {
	case TakeLocks:
		all = append(all, LocksTaken, LocksRefused)
	case DropLocks:
		all = append(all, LocksDropped)
	}
	return all
}

func (w *world) end(m machine, s side, k EventKind) ([]Verb, error) {
	h := &w.hosts[s]
	switch k {
	case JournalDone:
		h.disk, h.writing = 1<<h.writing, nothing
	case JournalFailed:
		h.writing = nothing
	case JournalUnknown:
		h.disk, h.writing = h.disk|1<<h.writing, nothing
	case LocksTaken, LocksRefused, LocksDropped:
		h.locks, h.locked = 0, k == LocksTaken
	}
	return w.step(m, s, Event{Kind: k})
}

// loses says that the guest may be lost if the process of a side ends: the source has it
// before it knows that it is the destination's, and the destination when it has run it.
// So it may be if a destination ends that does not know yet that its journal has OWNER.
func (w world) loses(s side) bool {
	if s == src {
		return w.source.guest && w.source.state != SourceLeaving && w.source.state != SourceGone
	}
	return w.ran
}

func (w *world) crash(s side, disk uint8) {
	h := &w.hosts[s]
	w.died = w.died || w.loses(s) || s == dst && disk&destinationMay != 0
	*h = host{fenced: h.fenced, disk: disk}
	if s == src {
		w.source = Source{}
	} else {
		w.destination = Destination{}
	}
}

// restart is a new process that finds what the journal has.
func (w *world) restart(s side) ([]Verb, error) {
	h := &w.hosts[s]
	h.up = true
	var r Record
	for i, e := range entries[s] {
		if h.disk == 1<<i {
			r = Record{Entry: e, ID: walkID, VM: "vm"}
		}
	}
	var actions []Action
	var err error
	switch {
	case s == src && r.State == 0:
		w.source = UnknownSource(walkID, walkEpoch)
	case s == src:
		w.source, actions, err = RestoreSource(r)
	case r.State != 0:
		w.destination, actions, err = RestoreDestination(r)
	}
	if err != nil {
		return nil, err
	}
	return w.do(s, actions)
}

// prune removes the record of a side without a process, if it is one that is removed.
func (w *world) prune(m machine, s side) {
	for r := owner; int(r) < len(entries[s]); r++ {
		if w.hosts[s].disk == 1<<r && m.prunes(entries[s][r]) {
			w.hosts[s].disk = 1 << nothing
		}
	}
}

// canMove says that a side can take the next step of the migration by itself.
func (w world) canMove(s side) bool {
	if s == src {
		return w.source.state == SourceCopying
	}
	return w.sent && w.destination.state == DestinationReceiving
}

func (w *world) moveOn(m machine, s side) ([]Verb, error) {
	if s == dst {
		return w.step(m, s, Event{Kind: StateLoaded})
	}
	w.sent = true
	w.hosts[src].running = false
	return w.step(m, s, Event{Kind: StateSent})
}

// TestWalk walks through every interleaving of messages lost, repeated, late and
// reordered, errors of the journal, refused locks, timers at any moment, lost links,
// cancels, orders by force, records that are pruned, and any number of crashes on both
// sides.
func TestWalk(t *testing.T) {
	ends := make(map[string]int)
	n, err := walk(genuine, func(w world) error {
		if err := w.careless(); err != nil {
			return err
		}
		end, err := settle(w, genuine)
		ends[end]++
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d worlds; when calm they end: %v", n, ends)
	// A walk that got nowhere would find nothing.
	for _, end := range []string{"at the source, running", "at the source, lost", "at the destination, running", "at the destination, lost", "fenced"} {
		if ends[end] == 0 {
			t.Errorf("no world ends %s", end)
		}
	}
}
