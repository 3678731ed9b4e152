package handover

import "fmt"

// SourceState is where a Source stands.
type SourceState uint8

// The states of a Source.
const (
	// SourceCopying: the guest runs here while its memory is copied.
	SourceCopying SourceState = iota + 1
	// SourceFrozen: the guest is paused, and READY is waited for.
	SourceFrozen
	// SourceReleasing: RELEASED is being written.
	SourceReleasing
	// SourceUndoing: whether RELEASED was written is not known; OWNER is being
	// written over it.
	SourceUndoing
	// SourceUnlocking: RELEASED is written, and the disk locks are being dropped.
	SourceUnlocking
	// SourceReleased: COMMIT is said again and again, and an answer is waited for.
	SourceReleased
	// SourceLocking: the guest comes back, and its disk locks are being taken.
	SourceLocking
	// SourceReclaiming: the guest comes back, and OWNER is being written.
	SourceReclaiming
	// SourceLeaving: the guest is the destination's, and GONE is being written.
	SourceLeaving
	// SourceAborted is an end: the guest has never been away.
	SourceAborted
	// SourceOwner is an end: the guest is back.
	SourceOwner
	// SourceGone is an end: the guest is the destination's.
	SourceGone
)

var sourceNames = [...]string{
	SourceCopying: "copying", SourceFrozen: "frozen", SourceReleasing: "releasing", SourceUndoing: "undoing",
	SourceUnlocking: "unlocking", SourceReleased: "released", SourceLocking: "locking", SourceReclaiming: "reclaiming",
	SourceLeaving: "leaving", SourceAborted: "aborted", SourceOwner: "owner", SourceGone: "gone",
}

// String is the state's name.
func (s SourceState) String() string { return name(sourceNames[:], s) }

// Source is the side that has the guest when a migration begins. It is a value: Step
// returns the next one. Two that are equal behave alike.
type Source struct {
	id    ID
	base  uint64
	state SourceState
	// guest says that the guest is in this process, be it paused.
	guest bool
	// doubt says that the operator knows of the doubt.
	doubt bool
	// resting says that nothing is under way until Retry fires.
	resting bool
	// runs says in SourceUndoing that the guest has been resumed.
	runs bool
	// started says in SourceReclaiming that the destination runs after all.
	started bool
	// reason is why the guest comes back or is given up, for the journal.
	reason string
}

// NewSource is the source of a migration that begins, of a guest owned in an epoch
// (see Journal.Epoch).
func NewSource(id ID, epoch uint64) Source {
	return Source{id: id, base: epoch, state: SourceCopying, guest: true}
}

// RestoreSource is the source whose process has ended, as its record tells, and what it
// does first. It keeps rule 5: with RELEASED it asks on, and does not run the guest.
func RestoreSource(r Record) (Source, []Action, error) {
	s := Source{id: r.ID, base: r.Base}
	switch {
	case r.Role != RoleSource:
		return Source{}, nil, fmt.Errorf("migration %s: a record of the %s: want one of the source", r.ID, r.Role)
	case r.State == StateOwner && r.Epoch == r.Base:
		s.state = SourceAborted
		return s, nil, nil
	case r.State == StateOwner:
		s.state = SourceOwner
		return s, nil, nil
	case r.State == StateGone:
		s.state = SourceGone
		return s, nil, nil
	case r.State == StateReleased:
		s.state = SourceReleased
		return s, append(s.ask(), s.inDoubt("this host let go of the guest and was started again")...), nil
	}
	return Source{}, nil, fmt.Errorf("migration %s: a source in state %s: want OWNER, RELEASED or GONE", r.ID, r.State)
}

// UnknownSource answers for a migration that nothing is known of here, neither by a
// process nor by a record: the guest was not let go. The caller holds the record's lock,
// which a process that takes part in the migration would hold.
func UnknownSource(id ID, epoch uint64) Source {
	return Source{id: id, base: epoch, state: SourceAborted}
}

// ID is the migration's.
func (s Source) ID() ID { return s.id }

// State is where the source stands.
func (s Source) State() SourceState { return s.state }

// MayRun says that a virtual processor of the guest may be entered here now.
func (s Source) MayRun() bool {
	switch s.state {
	case SourceCopying, SourceFrozen, SourceAborted, SourceOwner:
		return s.guest
	case SourceUndoing:
		return s.guest && s.runs
	}
	return false
}

// Final says that the migration has ended for this side. It answers still, which spares
// the peer from waiting, but nothing depends on that.
func (s Source) Final() bool { return s.state >= SourceAborted }

// Step takes an event and returns the source after it, and what is to be done.
func (s Source) Step(e Event) (Source, []Action) {
	if forAnother(e, s.id, s.base) {
		return s, nil
	}
	if e.Kind == GuestDied {
		s.guest = false
	}
	actions := s.step(e)
	return s, actions
}

func (s *Source) step(e Event) []Action {
	switch s.state {
	case SourceCopying, SourceFrozen:
		return s.owning(e)
	case SourceReleasing:
		return s.releasing(e)
	case SourceUndoing:
		return s.undoing(e)
	case SourceUnlocking:
		return s.unlocking(e)
	case SourceReleased:
		return s.released(e)
	case SourceLocking:
		return s.locking(e)
	case SourceReclaiming:
		return s.reclaiming(e)
	case SourceLeaving:
		return s.leaving(e)
	case SourceAborted, SourceOwner, SourceGone:
		return s.ended(e)
	}
	return nil
}

// owning keeps rule 1: whatever goes wrong before RELEASED, the source runs on.
func (s *Source) owning(e Event) []Action {
	frozen := s.state == SourceFrozen
	switch {
	case e.Kind == StateSent && !frozen:
		s.state = SourceFrozen
		return []Action{timer(AwaitReady)}
	case heard(e, Ready) && frozen:
		s.state = SourceReleasing
		return []Action{write(s.entry(StateReleased, s.base))}
	case heard(e, Refused):
		return s.abort(because(e, "the destination refused"), s.say(Ack, ""))
	case heard(e, Abort):
		return s.abort(because(e, "the destination gave up"))
	case fired(e, AwaitReady) && frozen:
		return s.abortAloud("the destination did not get ready in time")
	case e.Kind == LinkLost:
		return s.abortAloud(because(e, "the connection was lost"))
	case e.Kind == GuestDied:
		return s.abortAloud(because(e, "the guest has ended"))
	case e.Kind == Failed, e.Kind == Cancel:
		return s.abortAloud(because(e, "canceled"))
	}
	return s.notNow(e, "the guest runs here")
}

func (s *Source) releasing(e Event) []Action {
	switch e.Kind {
	case JournalDone:
		s.state = SourceUnlocking
		return []Action{do(DropLocks)}
	case JournalFailed:
		return s.abortAloud(because(e, "the journal could not be written"))
	case JournalUnknown:
		// COMMIT was not said, so the destination cannot run, and the guest could
		// run on here. But should this process end, RELEASED may be found in the
		// journal, and the next one would say COMMIT to a destination that is
		// ready still, with memory from before the guest ran on: its disks would
		// go back in time. So it runs on only when one of these is certain: OWNER
		// is in the journal, or the destination has refused.
		s.state = SourceUndoing
		return append(s.undo(), report(PhaseStuck, because(e, "whether the journal was written is unknown")))
	}
	return s.notNow(e, "the guest is being handed over")
}

// undo writes OWNER over what may be RELEASED, and asks the destination to refuse.
func (s *Source) undo() []Action {
	s.resting = false
	return []Action{write(s.entry(StateOwner, s.base)), s.say(Abort, "the source's journal failed")}
}

// undoing ends only when OWNER is written, also if the guest runs before that: a record
// of RELEASED must not be left behind, for a later migration of the guest starts from
// the same epoch.
func (s *Source) undoing(e Event) []Action {
	switch {
	case e.Kind == JournalDone && s.runs:
		s.state = SourceAborted
		return nil
	case e.Kind == JournalDone:
		return s.abortAloud("the journal could not be written")
	case writeFailed(e):
		return s.rest(because(e, "the journal could not be written"))
	case fired(e, Retry) && s.resting:
		return s.undo()
	case e.Kind == LinkBack:
		return []Action{s.say(Abort, "the source's journal failed")}
	case heard(e, Refused):
		return append(s.runOn("the journal could not be written"), s.say(Ack, ""))
	case e.Kind == ForceRun && e.Reason != "":
		return s.runOn(because(e, ""))
	}
	return s.notNow(e, "the journal cannot be written")
}

// runOn lets the guest run on while OWNER is not written yet.
func (s *Source) runOn(why string) []Action {
	if s.runs {
		return nil
	}
	s.runs = true
	return append(s.resume(), report(PhaseAborted, why))
}

// unlocking keeps the source's half of rule 6: COMMIT is said when the locks are dropped.
func (s *Source) unlocking(e Event) []Action {
	if e.Kind == LocksDropped {
		s.state = SourceReleased
		return append(s.ask(), report(PhaseHandover, ""))
	}
	return s.notNow(e, "the guest is being handed over")
}

// ask says COMMIT, now and after a while.
func (s *Source) ask() []Action { return []Action{s.say(Commit, ""), timer(Resend)} }

// released keeps rule 2: no timer and no error ends it.
func (s *Source) released(e Event) []Action {
	switch {
	case heard(e, Started):
		return s.leave("")
	case heard(e, Refused):
		return s.takeBack(because(e, "the destination refused"))
	case fired(e, Resend):
		return append(s.ask(), s.inDoubt("the destination does not answer")...)
	case e.Kind == LinkBack:
		return s.ask()
	case e.Kind == LinkLost:
		return s.inDoubt(because(e, "the connection was lost"))
	case e.Kind == ForceRun && e.Reason != "":
		// A destination that is alive against what the operator says, and is
		// ready, refuses when it hears this.
		return append([]Action{s.say(Abort, "the source was forced to run the guest")}, s.takeBack(because(e, ""))...)
	case e.Kind == ForceGiveUp:
		return s.leave(because(e, "given up"))
	}
	return s.notNow(e, "the guest has been let go; only the destination or an operator's order brings it back")
}

// inDoubt tells the operator, once.
func (s *Source) inDoubt(why string) []Action {
	if s.doubt {
		return nil
	}
	s.doubt = true
	return []Action{report(PhaseInDoubt, why)}
}

// leave ends all hope of the guest here: the destination has it for good.
func (s *Source) leave(why string) []Action {
	s.state, s.reason = SourceLeaving, why
	return append([]Action{do(Destroy)}, s.writeGone()...)
}

func (s *Source) writeGone() []Action {
	s.resting = false
	return []Action{write(s.entry(StateGone, s.base))}
}

// takeBack brings the guest back: locks, journal, and only then it runs. If it died
// with its process there is nothing that needs locks.
func (s *Source) takeBack(why string) []Action {
	s.reason = why
	if !s.guest {
		return s.reclaim()
	}
	s.state = SourceLocking
	return []Action{do(TakeLocks), report(PhaseRefused, why)}
}

func (s *Source) reclaim() []Action {
	s.state = SourceReclaiming
	s.resting = false
	return []Action{write(s.entry(StateOwner, s.base+2))}
}

func (s *Source) locking(e Event) []Action {
	switch {
	case e.Kind == LocksTaken:
		return s.reclaim()
	case e.Kind == LocksRefused:
		return s.rest(because(e, "the locks of the disks could not be taken"))
	case fired(e, Retry) && s.resting && !s.guest:
		return s.reclaim()
	case fired(e, Retry) && s.resting:
		s.resting = false
		return []Action{do(TakeLocks)}
	case heard(e, Started):
		// Locks that are being taken are dropped in SourceLeaving.
		return s.giveWay()
	}
	return s.notNow(e, "the guest is being taken back")
}

// giveWay is for a source that was forced to run the guest, but does not yet, and hears
// that the destination is alive and runs it.
func (s *Source) giveWay() []Action {
	return append([]Action{report(PhaseConflict, "the destination runs the guest; it stays there")}, s.leave("")...)
}

func (s *Source) reclaiming(e Event) []Action {
	ended := s.resting || e.Kind == JournalDone || writeFailed(e)
	s.started = s.started || heard(e, Started)
	switch {
	case s.started && ended:
		return append([]Action{do(DropLocks)}, s.giveWay()...)
	case e.Kind == JournalDone:
		s.state = SourceOwner
		return append(s.resume(), s.say(Ack, ""), report(PhaseTakenBack, s.reason))
	case writeFailed(e):
		return s.rest(because(e, "the journal could not be written"))
	case fired(e, Retry) && s.resting:
		return s.reclaim()
	}
	return s.notNow(e, "the guest is being taken back")
}

func (s *Source) leaving(e Event) []Action {
	switch {
	case e.Kind == JournalDone:
		s.state = SourceGone
		return []Action{s.say(Ack, ""), report(PhaseCompleted, s.reason)}
	case writeFailed(e):
		// RELEASED in the journal is as safe as GONE: the guest stays away.
		return s.rest(because(e, "the journal could not be written"))
	case fired(e, Retry) && s.resting:
		return s.writeGone()
	case e.Kind == LocksTaken:
		return []Action{do(DropLocks)}
	}
	return s.notNow(e, "the guest is the destination's")
}

// ended answers a peer that has not heard how it ended.
func (s *Source) ended(e Event) []Action {
	gone := s.state == SourceGone
	switch {
	case heard(e, Refused), heard(e, Started) && gone:
		return []Action{s.say(Ack, "")}
	case heard(e, Started):
		// A destination starts only after COMMIT: it was forced, or this side was.
		return []Action{report(PhaseConflict, "the destination says that it runs the guest, too")}
	case heard(e, Ready) && !gone, e.Kind == LinkBack && !gone:
		return []Action{s.say(Abort, "the source keeps the guest")}
	case e.Kind == LocksTaken && gone:
		return []Action{do(DropLocks)}
	}
	return s.notNow(e, "the migration has ended")
}

func (s *Source) abort(why string, more ...Action) []Action {
	s.state = SourceAborted
	return append(append(s.resume(), more...), report(PhaseAborted, why))
}

// abortAloud is abort for a destination that does not know.
func (s *Source) abortAloud(why string) []Action { return s.abort(why, s.say(Abort, why)) }

func (s *Source) resume() []Action {
	if !s.guest {
		return nil
	}
	return []Action{do(Resume)}
}

// rest waits before what failed is tried again.
func (s *Source) rest(why string) []Action {
	s.resting = true
	return []Action{timer(Retry), report(PhaseStuck, why)}
}

// notNow answers a user or operator whose wish means nothing now.
func (s *Source) notNow(e Event, why string) []Action { return notNow(e, s.state.String(), why) }

func (s *Source) say(v Verb, why string) Action {
	return send(Message{Verb: v, ID: s.id, Epoch: s.base, Reason: why})
}

func (s *Source) entry(state RecordState, epoch uint64) Entry {
	return Entry{Role: RoleSource, State: state, Base: s.base, Epoch: epoch, Settled: state != StateReleased, Reason: s.reason}
}
