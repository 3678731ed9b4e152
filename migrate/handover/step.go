package handover

// Event is what happened, for Source.Step and Destination.Step.
type Event struct {
	Kind EventKind
	// Message is what came, for Received.
	Message Message
	// Timer is which one, for TimerFired.
	Timer Timer
	// Reason says why, for people: the text of an error, or the operator's statement
	// that the peer has been fenced.
	Reason string
}

// EventKind is the kind of an Event.
type EventKind uint8

// The kinds of event. One that means nothing in the current state changes nothing, so
// a driver passes on whatever happens.
const (
	// Received is a message of the peer.
	Received EventKind = iota + 1
	// StateSent is for the source: the guest is paused, and everything that the
	// destination needs to run it is on its way.
	StateSent
	// StateLoaded is for the destination: all has come, and the guest could run.
	StateLoaded
	// JournalDone ends WriteJournal: the record will be read after any crash.
	JournalDone
	// JournalFailed ends WriteJournal: it is known that the journal is as it was.
	JournalFailed
	// JournalUnknown ends WriteJournal: whether the record will be read after a crash
	// is not known, for instance because an fsync failed.
	JournalUnknown
	// LocksTaken ends TakeLocks: all locks of the guest's disks are held.
	LocksTaken
	// LocksRefused ends TakeLocks: none is held.
	LocksRefused
	// LocksDropped ends DropLocks.
	LocksDropped
	// LinkLost says that no message gets through until LinkBack.
	LinkLost
	// LinkBack says that there is a new connection with the peer.
	LinkBack
	// TimerFired says that a timer of SetTimer has run out.
	TimerFired
	// GuestDied says that there is no guest in this process any more.
	GuestDied
	// Failed is any error of this side that makes the migration impossible.
	Failed
	// Cancel is a user's wish to call the migration off.
	Cancel
	// ForceRun is an operator's order to run the guest here, who states in Reason how
	// it was made sure that the peer has not run it, and never will; or an arbiter's,
	// for instance because a compare-and-swap of a lease on shared storage was won.
	// After a peer that has run the guest, memory and disks here do not fit any more:
	// the guest is to be given up, and started from its disks.
	ForceRun
	// ForceGiveUp is an operator's order never to run the guest here.
	ForceGiveUp
)

var eventNames = [...]string{
	Received: "received", StateSent: "state sent", StateLoaded: "state loaded",
	JournalDone: "journal done", JournalFailed: "journal failed", JournalUnknown: "journal unknown",
	LocksTaken: "locks taken", LocksRefused: "locks refused", LocksDropped: "locks dropped",
	LinkLost: "link lost", LinkBack: "link back", TimerFired: "timer fired", GuestDied: "guest died",
	Failed: "failed", Cancel: "cancel", ForceRun: "force run", ForceGiveUp: "force give up",
}

// String is the kind's name.
func (k EventKind) String() string { return name(eventNames[:], k) }

// Timer is one of the timers of a machine. The driver knows how long each takes.
type Timer uint8

// The timers. All but AwaitReady and AwaitCommit may take longer each time.
const (
	// AwaitReady is how long the source stays paused for READY before it runs on.
	AwaitReady Timer = iota + 1
	// AwaitCommit is how long the destination waits for COMMIT before it refuses.
	AwaitCommit
	// Resend is the time until a message is sent again.
	Resend
	// Retry is the time until a write of the journal or the locks are tried again.
	Retry
)

var timerNames = [...]string{AwaitReady: "await READY", AwaitCommit: "await COMMIT", Resend: "resend", Retry: "retry"}

// String is the timer's name.
func (t Timer) String() string { return name(timerNames[:], t) }

// Action is what a driver has to do. It does the actions of one Step in their order,
// each to its end before the next begins, and before the next Step; but for
// WriteJournal, TakeLocks and DropLocks, whose end it reports by an event. A machine
// wants no write before the last has ended, and no change of the locks before the last.
type Action struct {
	Kind ActionKind
	// Entry is what to write, for WriteJournal.
	Entry Entry
	// Message is what to say, for Send.
	Message Message
	// Timer is which one, for SetTimer.
	Timer Timer
	// Phase is how things are, for Report.
	Phase Phase
	// Reason says why, for people, with Report.
	Reason string
}

// ActionKind is the kind of an Action.
type ActionKind uint8

// The kinds of action.
const (
	// WriteJournal is to put a record into the journal, in place of that of this
	// migration. It ends with JournalDone, JournalFailed or JournalUnknown.
	WriteJournal ActionKind = iota + 1
	// Forget is to remove the record. Nothing depends on whether that succeeds.
	Forget
	// Send is to say something to the peer. A message that cannot be sent is lost:
	// that is no error.
	Send
	// TakeLocks is to take the locks of all disks, those that are held already
	// included. It ends with LocksTaken or LocksRefused.
	TakeLocks
	// DropLocks is to drop the locks of all disks, those that are not held
	// included. It ends with LocksDropped once others can take them.
	DropLocks
	// Run is to run the guest for the first time here, with its network and disks.
	Run
	// Resume is to let the paused guest run on. For one that runs it is nothing.
	Resume
	// Destroy is to make sure that this process never runs the guest (again). With
	// post-copy the source serves the pages that are left, from a guest that is
	// destroyed in this sense. It may come twice.
	Destroy
	// SetTimer is to start a timer, or to start it anew. Timers are not stopped: one
	// that fires late means nothing.
	SetTimer
	// Report is to tell the operator how things are.
	Report
)

var actionNames = [...]string{
	WriteJournal: "write journal", Forget: "forget", Send: "send", TakeLocks: "take locks", DropLocks: "drop locks",
	Run: "run", Resume: "resume", Destroy: "destroy", SetTimer: "set timer", Report: "report",
}

// String is the kind's name.
func (k ActionKind) String() string { return name(actionNames[:], k) }

// Phase is how a migration stands, for the operator.
type Phase uint8

// The phases.
const (
	// PhaseHandover: the source has let go, and waits for the destination.
	PhaseHandover Phase = iota + 1
	// PhaseInDoubt: the source has let go, and does not know whether the destination
	// runs the guest. It runs nowhere else until the destination answers, or the
	// operator fences that and says who is to run it.
	PhaseInDoubt
	// PhaseStuck: something that has to be done before the guest may run fails; it is
	// tried again.
	PhaseStuck
	// PhaseCompleted: the guest is the destination's.
	PhaseCompleted
	// PhaseAborted: the guest is the source's, as if nothing had been.
	PhaseAborted
	// PhaseRefused: the destination has refused the guest.
	PhaseRefused
	// PhaseTakenBack: the guest is the source's again after it had let go.
	PhaseTakenBack
	// PhaseConflict: the peer says that it runs a guest that was forced to run here,
	// or to be given up; one of the two has to be stopped by hand.
	PhaseConflict
	// PhaseNotNow: what the operator or user asked for cannot be done at this point.
	PhaseNotNow
)

var phaseNames = [...]string{
	PhaseHandover: "handover", PhaseInDoubt: "in-doubt", PhaseStuck: "stuck", PhaseCompleted: "completed",
	PhaseAborted: "aborted", PhaseRefused: "refused", PhaseTakenBack: "taken-back", PhaseConflict: "conflict", PhaseNotNow: "not-now",
}

// String is the phase's name, as users see it.
func (p Phase) String() string { return name(phaseNames[:], p) }

// The short forms of actions.

func send(m Message) Action             { return Action{Kind: Send, Message: m} }
func do(k ActionKind) Action            { return Action{Kind: k} }
func timer(t Timer) Action              { return Action{Kind: SetTimer, Timer: t} }
func report(p Phase, why string) Action { return Action{Kind: Report, Phase: p, Reason: why} }
func write(e Entry) Action              { return Action{Kind: WriteJournal, Entry: e} }
func fired(e Event, t Timer) bool       { return e.Kind == TimerFired && e.Timer == t }
func heard(e Event, v Verb) bool        { return e.Kind == Received && e.Message.Verb == v }
func writeFailed(e Event) bool          { return e.Kind == JournalFailed || e.Kind == JournalUnknown }
func forAnother(e Event, id ID, base uint64) bool {
	return e.Kind == Received && (e.Message.ID != id || e.Message.Epoch != base)
}

// because is the reason of an event, or of the peer that sent it, or a default.
func because(e Event, otherwise string) string {
	switch {
	case e.Kind == Received && e.Message.Reason != "":
		return "the peer says: " + cut(e.Message.Reason)
	case e.Reason != "":
		return cut(e.Reason)
	}
	return otherwise
}

// notNow answers a user's or operator's wish that means nothing in a state.
func notNow(e Event, state, why string) []Action {
	switch e.Kind {
	case Cancel, ForceRun, ForceGiveUp:
		return []Action{report(PhaseNotNow, e.Kind.String()+" while "+state+": "+why)}
	}
	return nil
}
