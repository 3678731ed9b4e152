package handover

import "fmt"

// DestinationState is where a Destination stands.
type DestinationState uint8

// The states of a Destination.
const (
	// DestinationReceiving: memory and state are coming.
	DestinationReceiving DestinationState = iota + 1
	// DestinationReady: everything has come, and COMMIT is waited for.
	DestinationReady
	// DestinationLocking: COMMIT has come, and the disk locks are being taken.
	DestinationLocking
	// DestinationOwning: OWNER is being written.
	DestinationOwning
	// DestinationRefusing: REFUSED is being written.
	DestinationRefusing
	// DestinationUnlocking: REFUSED is written, and disk locks are being dropped.
	DestinationUnlocking
	// DestinationRefused: REFUSED is said again and again until it is acknowledged.
	DestinationRefused
	// DestinationOwner: the guest is here for good, and STARTED is said again and
	// again until it is acknowledged.
	DestinationOwner
	// DestinationDone is an end: the guest is here, and the source knows.
	DestinationDone
	// DestinationForgotten is an end: the guest is not here, and the source knows.
	DestinationForgotten
	// DestinationAborted is an end: the guest has never been about to be here.
	DestinationAborted
)

var destinationNames = [...]string{
	DestinationReceiving: "receiving", DestinationReady: "ready", DestinationLocking: "locking",
	DestinationOwning: "owning", DestinationRefusing: "refusing", DestinationUnlocking: "unlocking",
	DestinationRefused: "refused", DestinationOwner: "owner", DestinationDone: "done",
	DestinationForgotten: "forgotten", DestinationAborted: "aborted",
}

// String is the state's name.
func (s DestinationState) String() string { return name(destinationNames[:], s) }

// Destination is the side that is to get the guest. It is a value: Step returns the next
// one. Two that are equal behave alike.
type Destination struct {
	id    ID
	base  uint64
	state DestinationState
	// guest says that the guest is in this process, be it not running yet.
	guest bool
	// resting says that nothing is under way until Retry fires.
	resting bool
	// reason is why the guest was refused.
	reason string
}

// NewDestination is the destination of a migration that begins, of a guest that the
// source owns in an epoch.
func NewDestination(id ID, epoch uint64) Destination {
	return Destination{id: id, base: epoch, state: DestinationReceiving, guest: true}
}

// RestoreDestination is the destination whose process has ended, as its record tells, and
// what it does first.
func RestoreDestination(r Record) (Destination, []Action, error) {
	d := Destination{id: r.ID, base: r.Base, reason: r.Reason}
	switch {
	case r.Role != RoleDestination:
		return Destination{}, nil, fmt.Errorf("migration %s: a record of the %s: want one of the destination", r.ID, r.Role)
	case r.State == StateOwner && r.Settled:
		d.state = DestinationDone
		return d, nil, nil
	case r.State == StateOwner:
		d.state = DestinationOwner
		return d, d.repeat(Started), nil
	case r.State == StateRefused:
		d.state = DestinationRefused
		return d, d.repeat(Refused), nil
	}
	return Destination{}, nil, fmt.Errorf("migration %s: a destination in state %s: want OWNER or REFUSED", r.ID, r.State)
}

// UnknownDestination answers for a migration that nothing is known of here, neither by a
// process nor by a record: it refuses, which is rule 4. The caller holds the record's
// lock, which a process that takes part in the migration would hold.
func UnknownDestination(id ID, epoch uint64) (Destination, []Action) {
	d := Destination{id: id, base: epoch}
	actions := d.refuse("nothing is known of this migration; the process that received the guest has ended")
	return d, actions
}

// ID is the migration's.
func (d Destination) ID() ID { return d.id }

// State is where the destination stands.
func (d Destination) State() DestinationState { return d.state }

// MayRun says that a virtual processor of the guest may be entered here now.
func (d Destination) MayRun() bool {
	return d.guest && (d.state == DestinationOwner || d.state == DestinationDone)
}

// Final says that the migration has ended for this side.
func (d Destination) Final() bool { return d.state >= DestinationDone }

// Step takes an event and returns the destination after it, and what is to be done.
func (d Destination) Step(e Event) (Destination, []Action) {
	if forAnother(e, d.id, d.base) {
		return d, nil
	}
	if e.Kind == GuestDied {
		d.guest = false
	}
	actions := d.step(e)
	return d, actions
}

func (d *Destination) step(e Event) []Action {
	switch d.state {
	case DestinationReceiving:
		return d.receiving(e)
	case DestinationReady:
		return d.ready(e)
	case DestinationLocking:
		return d.locking(e)
	case DestinationOwning:
		return d.owning(e)
	case DestinationRefusing:
		return d.refusing(e)
	case DestinationUnlocking:
		return d.unlocking(e)
	case DestinationRefused:
		return d.refused(e)
	case DestinationOwner:
		return d.owner(e)
	case DestinationDone, DestinationForgotten, DestinationAborted:
		return d.ended(e)
	}
	return nil
}

// receiving has nothing in the journal: READY was not said, so COMMIT cannot come.
func (d *Destination) receiving(e Event) []Action {
	switch {
	case e.Kind == StateLoaded:
		d.state = DestinationReady
		return []Action{d.say(Ready), timer(AwaitCommit)}
	case heard(e, Abort):
		return d.abort(because(e, "the source keeps the guest"))
	case e.Kind == LinkLost, e.Kind == GuestDied, e.Kind == Failed, e.Kind == Cancel, e.Kind == ForceGiveUp:
		d.reason = because(e, "given up")
		return append([]Action{d.say(Abort)}, d.abort(d.reason)...)
	}
	return d.notNow(e, "the guest has not come yet")
}

func (d *Destination) abort(why string) []Action {
	d.state = DestinationAborted
	return []Action{do(Destroy), report(PhaseAborted, why)}
}

// ready keeps rule 3: no timer, and no loss of the link, leads to running.
func (d *Destination) ready(e Event) []Action {
	switch {
	case heard(e, Commit), e.Kind == ForceRun && e.Reason != "":
		d.state = DestinationLocking
		return []Action{do(TakeLocks)}
	case fired(e, AwaitCommit):
		return d.refuse("no COMMIT came in time")
	case heard(e, Abort), e.Kind == GuestDied, e.Kind == Failed, e.Kind == Cancel, e.Kind == ForceGiveUp:
		return d.refuse(because(e, "given up"))
	}
	return d.notNow(e, "to run the guest here takes a statement of how the source was fenced")
}

// locking keeps the destination's half of rule 6.
func (d *Destination) locking(e Event) []Action {
	switch {
	case e.Kind == LocksTaken && d.guest:
		d.state = DestinationOwning
		return []Action{write(Entry{Role: RoleDestination, State: StateOwner, Base: d.base, Epoch: d.base + 1})}
	case e.Kind == LocksTaken:
		return d.refuse("the guest has ended")
	case e.Kind == LocksRefused:
		return d.refuse(because(e, "the locks of the disks could not be taken"))
	}
	return d.notNow(e, "the guest is being taken over")
}

// owning keeps rule 7: the guest runs, with its network and disks, when OWNER is written.
//
// If that fails, OWNER may be in the journal or not, but nothing has been said, so that
// the guest may still be refused. REFUSED goes over it, and is said when it is written.
// Should this process end before, and OWNER be found, the guest is lost: it takes a
// failing disk and a crash.
func (d *Destination) owning(e Event) []Action {
	switch {
	case e.Kind == JournalDone && d.guest:
		d.state = DestinationOwner
		return append([]Action{do(Run)}, append(d.repeat(Started), report(PhaseCompleted, ""))...)
	case e.Kind == JournalDone:
		return d.refuse("the guest has ended")
	case writeFailed(e):
		return d.refuse(because(e, "the journal could not be written"))
	}
	return d.notNow(e, "the guest is being taken over")
}

// refuse decides, for good, not to own the guest. It is said when it is written: the
// journal may hold OWNER, and the next process would say STARTED.
func (d *Destination) refuse(why string) []Action {
	d.reason = why
	return append(d.writeRefused(), report(PhaseRefused, why))
}

func (d *Destination) writeRefused() []Action {
	d.state = DestinationRefusing
	d.resting = false
	return []Action{write(Entry{Role: RoleDestination, State: StateRefused, Base: d.base, Epoch: d.base + 1, Reason: d.reason})}
}

func (d *Destination) refusing(e Event) []Action {
	switch {
	case e.Kind == JournalDone:
		d.state = DestinationUnlocking
		d.guest = false
		return []Action{do(Destroy), do(DropLocks)}
	case writeFailed(e):
		d.resting = true
		return []Action{timer(Retry), report(PhaseStuck, because(e, "the journal could not be written"))}
	case fired(e, Retry) && d.resting:
		return d.writeRefused()
	}
	return d.notNow(e, "the guest is being refused")
}

// unlocking says REFUSED when the source can take the locks.
func (d *Destination) unlocking(e Event) []Action {
	if e.Kind == LocksDropped {
		d.state = DestinationRefused
		return d.repeat(Refused)
	}
	return d.notNow(e, "the guest is being refused")
}

func (d *Destination) refused(e Event) []Action {
	switch {
	case heard(e, Commit), heard(e, Abort):
		return []Action{d.say(Refused)}
	case fired(e, Resend), e.Kind == LinkBack:
		return d.repeat(Refused)
	case heard(e, Ack):
		// Without a record rule 4 gives the same answer, so none is needed.
		d.state = DestinationForgotten
		return []Action{do(Forget)}
	}
	return d.notNow(e, "the guest has been refused")
}

// owner keeps the second half of rule 4 if it was restored: it has no guest, but says
// STARTED, and the source stays down.
func (d *Destination) owner(e Event) []Action {
	switch {
	case heard(e, Commit):
		return []Action{d.say(Started)}
	case fired(e, Resend), e.Kind == LinkBack:
		return d.repeat(Started)
	case heard(e, Ack):
		d.state = DestinationDone
		return []Action{write(Entry{Role: RoleDestination, State: StateOwner, Base: d.base, Epoch: d.base + 1, Settled: true})}
	}
	return d.notNow(e, "the guest is here")
}

// ended answers a source that was started again with an older record.
func (d *Destination) ended(e Event) []Action {
	switch {
	case heard(e, Commit) && d.state == DestinationDone:
		return []Action{d.say(Started)}
	case heard(e, Commit), heard(e, Abort) && d.state == DestinationForgotten:
		return d.refuse("the guest was refused before")
	}
	return d.notNow(e, "the migration has ended")
}

// repeat says something now and after a while.
func (d *Destination) repeat(v Verb) []Action { return []Action{d.say(v), timer(Resend)} }

func (d *Destination) notNow(e Event, why string) []Action { return notNow(e, d.state.String(), why) }

func (d *Destination) say(v Verb) Action {
	return send(Message{Verb: v, ID: d.id, Epoch: d.base, Reason: d.reason})
}
