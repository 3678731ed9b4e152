package handover

import (
	"fmt"
	"strings"
	"testing"
)

// scene is an event and the actions that it has to lead to.
type scene struct {
	event Event
	want  string
}

func hears(v Verb) Event {
	return Event{Kind: Received, Message: Message{Verb: v, ID: walkID, Epoch: walkEpoch}}
}

func is(k EventKind) Event { return Event{Kind: k} }

func timeout(t Timer) Event { return Event{Kind: TimerFired, Timer: t} }

var (
	forceRun = Event{Kind: ForceRun, Reason: "its power is off"}

	moveOn   = []scene{{is(StateSent), "set timer await READY"}}
	letGo    = append(moveOn, scene{hears(Ready), "write journal RELEASED 1"})
	dropped  = append(letGo, scene{is(JournalDone), "drop locks"})
	asked    = append(dropped, scene{is(LocksDropped), "send COMMIT, set timer resend, report handover"})
	unknown  = append(letGo, scene{is(JournalUnknown), "write journal OWNER 1, send ABORT, report stuck"})
	given    = append(asked, scene{hears(Started), "destroy, write journal GONE 1"})
	back     = append(asked, scene{hears(Refused), "take locks, report refused"})
	regained = append(back, scene{is(LocksTaken), "write journal OWNER 3"})

	loaded   = []scene{{is(StateLoaded), "send READY, set timer await COMMIT"}}
	taking   = append(loaded, scene{hears(Commit), "take locks"})
	locked   = append(taking, scene{is(LocksTaken), "write journal OWNER 2"})
	taken    = append(locked, scene{is(JournalDone), "run, send STARTED, set timer resend, report completed"})
	late     = append(loaded, scene{timeout(AwaitCommit), "write journal REFUSED 2, report refused"})
	refusing = append(late, scene{is(JournalDone), "destroy, drop locks"})
	said     = append(refusing, scene{is(LocksDropped), "send REFUSED, set timer resend"})
)

func play[M interface{ Step(Event) (M, []Action) }](t *testing.T, m M, scenes ...scene) M {
	t.Helper()
	for i, s := range scenes {
		next, actions := m.Step(s.event)
		if got := inWords(actions); got != s.want {
			t.Fatalf("event %d, %s: %q, want %q", i, s.event.Kind, got, s.want)
		}
		m = next
	}
	return m
}

func inWords(actions []Action) string {
	var words []string
	for _, a := range actions {
		w := a.Kind.String()
		switch a.Kind {
		case WriteJournal:
			w += fmt.Sprintf(" %s %d", a.Entry.State, a.Entry.Epoch)
		case Send:
			w += " " + a.Message.Verb.String()
		case SetTimer:
			w += " " + a.Timer.String()
		case Report:
			w += " " + a.Phase.String()
		}
		words = append(words, w)
	}
	return strings.Join(words, ", ")
}

func TestSource(t *testing.T) {
	for _, test := range []struct {
		name   string
		before []scene
		then   []scene
		end    SourceState
		runs   bool
	}{
		{"given", given, []scene{{is(JournalDone), "send ACK, report completed"}, {hears(Started), "send ACK"}}, SourceGone, false},
		{"given, journal fails", given, []scene{
			{is(JournalFailed), "set timer retry, report stuck"}, {timeout(Retry), "write journal GONE 1"},
			{timeout(Retry), ""}, {is(JournalDone), "send ACK, report completed"},
		}, SourceGone, false},
		{"link lost while copying", nil, []scene{{is(LinkLost), "resume, send ABORT, report aborted"}}, SourceAborted, true},
		{"canceled", moveOn, []scene{{is(Cancel), "resume, send ABORT, report aborted"}, {hears(Ready), "send ABORT"}}, SourceAborted, true},
		{"not ready in time", moveOn, []scene{{timeout(AwaitReady), "resume, send ABORT, report aborted"}}, SourceAborted, true},
		{"refused before RELEASED", moveOn, []scene{{hears(Refused), "resume, send ACK, report aborted"}}, SourceAborted, true},
		{"destination gives up", nil, []scene{{hears(Abort), "resume, report aborted"}}, SourceAborted, true},
		{"guest ends", nil, []scene{{is(GuestDied), "send ABORT, report aborted"}}, SourceAborted, false},
		{"RELEASED not written", letGo, []scene{{is(JournalFailed), "resume, send ABORT, report aborted"}}, SourceAborted, true},
		{"canceled too late", letGo, []scene{{is(Cancel), "report not-now"}}, SourceReleasing, false},
		{"RELEASED unknown, undone", unknown, []scene{{is(JournalDone), "resume, send ABORT, report aborted"}}, SourceAborted, true},
		{"RELEASED unknown, refused", unknown, []scene{
			{is(JournalFailed), "set timer retry, report stuck"}, {is(LinkBack), "send ABORT"},
			{hears(Refused), "resume, report aborted, send ACK"}, {hears(Refused), "send ACK"},
		}, SourceUndoing, true},
		{"RELEASED unknown, refused, undone", unknown, []scene{
			{is(JournalUnknown), "set timer retry, report stuck"}, {hears(Refused), "resume, report aborted, send ACK"},
			{timeout(Retry), "write journal OWNER 1, send ABORT"}, {is(JournalDone), ""},
		}, SourceAborted, true},
		{"RELEASED unknown, forced", unknown, []scene{{is(ForceRun), "report not-now"}, {forceRun, "resume, report aborted"}}, SourceUndoing, true},
		{"no answer", asked, []scene{
			{timeout(Resend), "send COMMIT, set timer resend, report in-doubt"}, {timeout(Resend), "send COMMIT, set timer resend"},
			{is(LinkLost), ""}, {is(LinkBack), "send COMMIT, set timer resend"}, {is(Failed), ""}, {is(Cancel), "report not-now"}, {hears(Abort), ""},
		}, SourceReleased, false},
		{"link lost", asked, []scene{{is(LinkLost), "report in-doubt"}}, SourceReleased, false},
		{"taken back", regained, []scene{{is(JournalDone), "resume, send ACK, report taken-back"}, {hears(Refused), "send ACK"}}, SourceOwner, true},
		{"taken back, locks busy", back, []scene{
			{is(LocksRefused), "set timer retry, report stuck"}, {timeout(Retry), "take locks"}, {timeout(Retry), ""}, {is(LocksTaken), "write journal OWNER 3"},
		}, SourceReclaiming, false},
		{"taken back, journal fails", regained, []scene{
			{is(JournalUnknown), "set timer retry, report stuck"}, {timeout(Retry), "write journal OWNER 3"},
		}, SourceReclaiming, false},
		{"taken back, guest died", asked, []scene{
			{is(GuestDied), ""}, {hears(Refused), "write journal OWNER 3"}, {is(JournalDone), "send ACK, report taken-back"},
		}, SourceOwner, false},
		{"taken back, locks busy until the guest died", back, []scene{
			{is(LocksRefused), "set timer retry, report stuck"}, {is(GuestDied), ""}, {timeout(Retry), "write journal OWNER 3"},
		}, SourceReclaiming, false},
		{"forced without a statement", asked, []scene{{is(ForceRun), "report not-now"}}, SourceReleased, false},
		{"forced", asked, []scene{
			{forceRun, "send ABORT, take locks, report refused"}, {is(LocksTaken), "write journal OWNER 3"},
			{is(JournalDone), "resume, send ACK, report taken-back"}, {hears(Started), "report conflict"}, {is(LinkBack), "send ABORT"},
		}, SourceOwner, true},
		{"forced, while the destination starts", asked, []scene{
			{forceRun, "send ABORT, take locks, report refused"}, {hears(Started), "report conflict, destroy, write journal GONE 1"},
			{is(LocksTaken), "drop locks"}, {is(LocksDropped), ""}, {is(JournalDone), "send ACK, report completed"},
		}, SourceGone, false},
		{"forced, and the destination starts while OWNER is written", asked, []scene{
			{forceRun, "send ABORT, take locks, report refused"}, {is(LocksTaken), "write journal OWNER 3"}, {hears(Started), ""},
			{is(JournalDone), "drop locks, report conflict, destroy, write journal GONE 1"},
		}, SourceLeaving, false},
		{"forced, and the destination starts when OWNER could not be written", asked, []scene{
			{forceRun, "send ABORT, take locks, report refused"}, {is(LocksTaken), "write journal OWNER 3"},
			{is(JournalFailed), "set timer retry, report stuck"}, {hears(Started), "drop locks, report conflict, destroy, write journal GONE 1"},
		}, SourceLeaving, false},
		{"given up by force", asked, []scene{{is(ForceGiveUp), "destroy, write journal GONE 1"}}, SourceLeaving, false},
		{"peer out of order", nil, []scene{{hears(Started), ""}, {hears(Ready), ""}, {hears(Ack), ""}, {hears(0), ""}}, SourceCopying, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := play(t, NewSource(walkID, walkEpoch), append(test.before[:len(test.before):len(test.before)], test.then...)...)
			if s.State() != test.end || s.MayRun() != test.runs {
				t.Errorf("ends %s, may run: %v; want %s, %v", s.State(), s.MayRun(), test.end, test.runs)
			}
		})
	}
}

func TestDestination(t *testing.T) {
	for _, test := range []struct {
		name   string
		before []scene
		then   []scene
		end    DestinationState
		runs   bool
	}{
		{"taken", taken, []scene{
			{hears(Commit), "send STARTED"}, {timeout(Resend), "send STARTED, set timer resend"}, {is(LinkBack), "send STARTED, set timer resend"},
			{hears(Ack), "write journal OWNER 2"}, {is(JournalFailed), ""}, {hears(Commit), "send STARTED"},
		}, DestinationDone, true},
		{"guest ends after the handover", taken, []scene{{is(GuestDied), ""}, {hears(Commit), "send STARTED"}}, DestinationOwner, false},
		{"link lost while receiving", nil, []scene{{is(LinkLost), "send ABORT, destroy, report aborted"}}, DestinationAborted, false},
		{"source gives up", nil, []scene{{hears(Abort), "destroy, report aborted"}}, DestinationAborted, false},
		{"link lost while ready", loaded, []scene{{is(LinkLost), ""}, {is(LinkBack), ""}, {timeout(Resend), ""}, {timeout(Retry), ""}}, DestinationReady, false},
		{"no COMMIT in time", said, []scene{
			{hears(Commit), "send REFUSED"}, {timeout(Resend), "send REFUSED, set timer resend"}, {hears(Ack), "forget"},
			{hears(Commit), "write journal REFUSED 2, report refused"},
		}, DestinationRefusing, false},
		{"source gives up when ready", loaded, []scene{{hears(Abort), "write journal REFUSED 2, report refused"}}, DestinationRefusing, false},
		{"canceled when ready", loaded, []scene{{is(Cancel), "write journal REFUSED 2, report refused"}}, DestinationRefusing, false},
		{"REFUSED not written", late, []scene{
			{hears(Commit), ""}, {is(JournalUnknown), "set timer retry, report stuck"}, {hears(Commit), ""},
			{timeout(Retry), "write journal REFUSED 2"}, {timeout(Retry), ""},
		}, DestinationRefusing, false},
		{"locks busy", taking, []scene{{is(LocksRefused), "write journal REFUSED 2, report refused"}}, DestinationRefusing, false},
		{"guest dies while locking", taking, []scene{{is(GuestDied), ""}, {is(LocksTaken), "write journal REFUSED 2, report refused"}}, DestinationRefusing, false},
		{"guest dies while owning", locked, []scene{{is(GuestDied), ""}, {is(JournalDone), "write journal REFUSED 2, report refused"}}, DestinationRefusing, false},
		{"OWNER not written", locked, []scene{{is(JournalFailed), "write journal REFUSED 2, report refused"}}, DestinationRefusing, false},
		{"OWNER unknown", locked, []scene{{is(JournalUnknown), "write journal REFUSED 2, report refused"}}, DestinationRefusing, false},
		{"too late to cancel", locked, []scene{{is(Cancel), "report not-now"}, {timeout(AwaitCommit), ""}, {hears(Abort), ""}}, DestinationOwning, false},
		{"forced without a statement", loaded, []scene{{is(ForceRun), "report not-now"}}, DestinationReady, false},
		{"forced", loaded, []scene{{forceRun, "take locks"}}, DestinationLocking, false},
		{"peer out of order", nil, []scene{{hears(Commit), ""}, {hears(Ack), ""}, {hears(Ready), ""}}, DestinationReceiving, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := play(t, NewDestination(walkID, walkEpoch), append(test.before[:len(test.before):len(test.before)], test.then...)...)
			if d.State() != test.end || d.MayRun() != test.runs {
				t.Errorf("ends %s, may run: %v; want %s, %v", d.State(), d.MayRun(), test.end, test.runs)
			}
		})
	}
}

// TestStatement has what the operator stated in the journal, also when it is written
// again, and in the last report.
func TestStatement(t *testing.T) {
	for _, test := range []struct {
		force  EventKind
		events []EventKind
	}{
		{ForceRun, []EventKind{LocksTaken, JournalFailed, TimerFired, JournalDone}},
		{ForceGiveUp, []EventKind{JournalFailed, TimerFired, JournalDone}},
	} {
		s := play(t, NewSource(walkID, walkEpoch), asked...)
		s, actions := s.Step(Event{Kind: test.force, Reason: forceRun.Reason})
		for _, k := range test.events {
			var more []Action
			s, more = s.Step(Event{Kind: k, Timer: Retry})
			actions = append(actions, more...)
		}
		writes := 0
		for _, a := range actions {
			if a.Kind == WriteJournal {
				writes++
			}
			if a.Kind == WriteJournal && a.Entry.Reason != forceRun.Reason {
				t.Errorf("%s: %s is written because of %q", test.force, a.Entry.State, a.Entry.Reason)
			}
		}
		if last := actions[len(actions)-1]; writes != 2 || !s.Final() || last.Reason != forceRun.Reason {
			t.Errorf("%s: %d writes, ends %s, %+v", test.force, writes, s.State(), last)
		}
	}
}

// TestAnother has messages of other migrations, which mean nothing to this one.
func TestAnother(t *testing.T) {
	for _, m := range []Message{
		{Verb: Ready, ID: ID{2}, Epoch: walkEpoch}, {Verb: Ready, ID: walkID, Epoch: walkEpoch + 1},
		{Verb: Commit, ID: ID{2}, Epoch: walkEpoch}, {Verb: Commit, ID: walkID},
	} {
		play(t, NewSource(walkID, walkEpoch), append(moveOn, scene{Event{Kind: Received, Message: m}, ""})...)
		play(t, NewDestination(walkID, walkEpoch), append(loaded, scene{Event{Kind: Received, Message: m}, ""})...)
	}
}

func TestRestore(t *testing.T) {
	for _, test := range []struct {
		entry Entry
		state string
		want  string
	}{
		{sourceEntry(StateOwner, 1, 1), "aborted", ""},
		{sourceEntry(StateReleased, 1, 1), "released", "send COMMIT, set timer resend, report in-doubt"},
		{sourceEntry(StateGone, 1, 1), "gone", ""},
		{sourceEntry(StateOwner, 1, 3), "owner", ""},
		{destinationEntry(StateOwner, 1, false), "owner", "send STARTED, set timer resend"},
		{destinationEntry(StateOwner, 1, true), "done", ""},
		{destinationEntry(StateRefused, 1, false), "refused", "send REFUSED, set timer resend"},
	} {
		r := Record{Entry: test.entry, ID: walkID, VM: "vm"}
		s, actions, err := RestoreSource(r)
		state, runs := s.State().String(), s.MayRun()
		if r.Role == RoleDestination {
			if err == nil {
				t.Errorf("%s: a source was made of it", r.State)
			}
			var d Destination
			d, actions, err = RestoreDestination(r)
			state, runs = d.State().String(), d.MayRun()
		} else if _, _, err := RestoreDestination(r); err == nil {
			t.Errorf("%s: a destination was made of it", r.State)
		}
		if got := inWords(actions); err != nil || state != test.state || got != test.want || runs {
			t.Errorf("%s %s: %s, %q, %v, may run: %v; want %s, %q", r.Role, r.State, state, got, err, runs, test.state, test.want)
		}
	}
	d, actions := UnknownDestination(walkID, walkEpoch)
	if got := inWords(actions); d.State() != DestinationRefusing || got != "write journal REFUSED 2, report refused" {
		t.Errorf("unknown destination: %s, %q", d.State(), got)
	}
	s := UnknownSource(walkID, walkEpoch)
	play(t, s, scene{hears(Ready), "send ABORT"}, scene{hears(Refused), "send ACK"}, scene{hears(Started), "report conflict"})
}
