package vmm

import "github.com/godwit-vmm/godwit/machine"

// EventKind says what has happened.
type EventKind string

// The kinds.
const (
	EventStarted  EventKind = "started"
	EventPaused   EventKind = "paused"
	EventResumed  EventKind = "resumed"
	EventRebooted EventKind = "rebooted"
	EventPanicked EventKind = "panicked"
	// EventSnapshot is a snapshot that is whole, and EventRestored the start of a
	// guest from one.
	EventSnapshot EventKind = "snapshot"
	EventRestored EventKind = "restored"
	// EventEnded is the last one.
	EventEnded EventKind = "ended"
	// EventTrouble is trouble that the guest or the host makes for a device,
	// once for each kind of it.
	EventTrouble EventKind = "trouble"
)

// Event is something that has happened to a guest.
type Event struct {
	Kind EventKind
	// Outcome is how the guest ended, with EventEnded.
	Outcome machine.Outcome
	// Path is the snapshot, with EventSnapshot and EventRestored.
	Path string
	// Err is what went wrong, with EventTrouble and EventEnded.
	Err error
}

func (v *VM) tell(e Event) {
	if v.o.Event != nil {
		v.o.Event(e)
	}
}

func (v *VM) warn(err error) { v.tell(Event{Kind: EventTrouble, Err: err}) }
