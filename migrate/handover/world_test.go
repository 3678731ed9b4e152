package handover

import "fmt"

// A world is everything that matters for who runs the guest: both machines as they are,
// both hosts, and what is on its way between them. It is small and plain, so that all
// worlds that can be reached can be walked through.
type world struct {
	source      Source
	destination Destination
	hosts       [2]host
	// sky has the messages that were ever said. Each may be heard at any time, any
	// number of times, in any order, or never: lost, repeated, late and reordered.
	sky uint8
	// sent: the guest was paused and its state sent.
	sent bool
	// ranOn: the source's guest ran after that.
	ranOn bool
	// ran: the destination's guest ran.
	ran bool
	// died: a guest was lost with its process.
	died bool
}

// side is an index of world.hosts.
type side uint8

const (
	src side = iota
	dst
)

func (s side) other() side { return 1 - s }

// host is what a machine has to do with.
type host struct {
	// up: the process lives.
	up bool
	// fenced: an operator has seen to it that this host never runs the guest.
	fenced bool
	// running: virtual processors are being entered.
	running bool
	// locked: the disk locks are held.
	locked bool
	// locks is the change of them that is under way, if any.
	locks ActionKind
	// disk is the set of records, by bits, that may be found after a crash: more than
	// one after a write whose outcome is unknown.
	disk uint8
	// writing is the record that is being written.
	writing record
}

// record is what a journal can say in one migration.
type record uint8

const (
	nothing record = iota
	owner
	released
	gone
	ownerAgain
	ownerSettled = released
	refused      = gone
)

const (
	sourceMay      = 1<<nothing | 1<<owner | 1<<ownerAgain
	destinationMay = 1<<owner | 1<<ownerSettled
)

// The migration of all walks.
var walkID = ID{1}

const walkEpoch = 1

// entries are the records of each side.
var entries = [2][]Entry{
	src: {
		owner:      {RoleSource, StateOwner, walkEpoch, walkEpoch, true, ""},
		released:   {RoleSource, StateReleased, walkEpoch, walkEpoch, false, ""},
		gone:       {RoleSource, StateGone, walkEpoch, walkEpoch, true, ""},
		ownerAgain: {RoleSource, StateOwner, walkEpoch, walkEpoch + 2, true, ""},
	},
	dst: {
		owner:        {RoleDestination, StateOwner, walkEpoch, walkEpoch + 1, false, ""},
		ownerSettled: {RoleDestination, StateOwner, walkEpoch, walkEpoch + 1, true, ""},
		refused:      {RoleDestination, StateRefused, walkEpoch, walkEpoch + 1, false, ""},
	},
}

func recordOf(s side, e Entry) record {
	e.Reason = ""
	for i, known := range entries[s] {
		if i > 0 && known == e {
			return record(i)
		}
	}
	panic(fmt.Sprintf("the machine wants to write %+v", e))
}

func newWorld() world {
	w := world{source: NewSource(walkID, walkEpoch), destination: NewDestination(walkID, walkEpoch)}
	w.hosts[src] = host{up: true, running: true, locked: true, disk: 1 << nothing}
	w.hosts[dst] = host{up: true, disk: 1 << nothing}
	return w
}

// plain forgets what tells worlds apart that behave alike.
func (w world) plain() world {
	w.source.doubt = true
	w.source.reason, w.destination.reason = "", ""
	return w
}

// key is the world in bits.
func (w world) key() uint64 {
	var k uint64
	put := func(bits int, v uint8) {
		if v >= 1<<bits {
			panic("a field of a world is too small")
		}
		k = k<<bits | uint64(v)
	}
	s, d := w.source, w.destination
	put(4, uint8(s.state))
	put(4, uint8(d.state))
	for _, f := range [...]bool{s.guest, s.resting, s.runs, s.started, d.guest, d.resting, w.sent, w.ranOn, w.ran, w.died} {
		put(1, bit(f))
	}
	put(7, w.sky)
	for _, h := range w.hosts {
		for _, f := range [...]bool{h.up, h.fenced, h.running, h.locked, h.locks == TakeLocks, h.locks == DropLocks} {
			put(1, bit(f))
		}
		put(5, h.disk)
		put(3, uint8(h.writing))
	}
	return k
}

func bit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// letter is the bit of a message in the sky.
func letter(from side, v Verb) uint8 {
	if v == Abort && from == dst {
		return 1 << 6
	}
	return 1 << (v - 1)
}

// listens are the verbs that a side can hear.
var listens = [2][]Verb{src: {Ready, Started, Refused, Abort}, dst: {Commit, Abort, Ack}}

// machine is the behaviour that is walked through: that of the package, or a mutant's.
type machine struct {
	name        string
	source      func(Source, Event) (Source, []Action)
	destination func(Destination, Event) (Destination, []Action)
	// prunes says whether a record is removed that no process uses.
	prunes func(Entry) bool
}

var genuine = machine{name: "genuine", source: Source.Step, destination: Destination.Step, prunes: Entry.needless}

// step lets an event happen on a side, and all that follows at once. It returns what is
// said, and the error says which promise is broken.
func (w *world) step(m machine, s side, e Event) (said []Verb, err error) {
	var actions []Action
	switch {
	case s == src:
		w.source, actions = m.source(w.source, e)
	case heard(e, Commit) && w.destination.state == 0:
		w.destination, actions = UnknownDestination(walkID, walkEpoch)
	default:
		w.destination, actions = m.destination(w.destination, e)
	}
	return w.do(s, actions)
}

func (w *world) do(s side, actions []Action) (said []Verb, err error) {
	h := &w.hosts[s]
	for _, a := range actions {
		switch a.Kind {
		case WriteJournal:
			if h.writing != nothing {
				return said, fmt.Errorf("two writes at once")
			}
			h.writing = recordOf(s, a.Entry)
		case Forget:
			h.disk |= 1 << nothing
		case Send:
			w.sky |= letter(s, a.Message.Verb)
			said = append(said, a.Message.Verb)
		case TakeLocks, DropLocks:
			if h.locks != 0 {
				return said, fmt.Errorf("two changes of the locks at once")
			}
			h.locks = a.Kind
		case Run, Resume:
			h.running = true
			w.ranOn = w.ranOn || s == src && w.sent
			w.ran = w.ran || s == dst
		case Destroy:
			h.running = false
		}
		if err := w.broken(); err != nil {
			return said, err
		}
	}
	return said, nil
}

// broken says which promise to users a world breaks. It looks at what happens to the
// guest, not at how the machines go about it.
func (w *world) broken() error {
	a, b := w.hosts[src], w.hosts[dst]
	switch {
	case a.running && b.running:
		return fmt.Errorf("two guests run")
	case w.ran && w.ranOn:
		return fmt.Errorf("the guest ran on both sides after its state was sent")
	case !a.fenced && !b.fenced && a.readable()&sourceMay != 0 && b.readable()&destinationMay != 0:
		return fmt.Errorf("after a crash now both journals may permit to start the guest")
	}
	return nil
}

// readable are the records that may be found after a crash now.
func (h host) readable() uint8 {
	if h.writing != nothing {
		return h.disk | 1<<h.writing
	}
	return h.disk
}

// careless says which promise within the package a world breaks, after its rules.
func (w *world) careless() error {
	a, b := w.hosts[src], w.hosts[dst]
	switch {
	case a.running && !w.source.MayRun(), b.running && !w.destination.MayRun():
		return fmt.Errorf("a guest runs that may not")
	case a.running && a.disk&^sourceMay != 0 && w.source.state != SourceUndoing:
		return fmt.Errorf("the source runs the guest, and its journal may not say OWNER")
	case b.running && b.disk&^destinationMay != 0:
		return fmt.Errorf("the destination runs the guest, and its journal may not say OWNER")
	case (w.source.state == SourceAborted || w.source.state == SourceOwner) && a.disk&^sourceMay != 0:
		return fmt.Errorf("the source has done, and RELEASED may be left in its journal")
	case a.running && !a.locked, b.running && !b.locked:
		return fmt.Errorf("a guest runs without the locks of its disks")
	case a.locked && b.locked, a.locks == TakeLocks && b.locked, a.locked && b.locks == TakeLocks:
		return fmt.Errorf("the locks are wanted while the other side has them")
	}
	return nil
}
