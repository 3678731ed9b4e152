package vmm

import (
	"errors"

	"github.com/godwit-vmm/godwit/devices/virtio/vpci"
	"github.com/godwit-vmm/godwit/machine"
)

// EventKind says what has happened.
type EventKind string

// The kinds.
const (
	EventStarted  EventKind = "started"
	EventPaused   EventKind = "paused"
	EventResumed  EventKind = "resumed"
	EventRebooted EventKind = "rebooted"
	EventPanicked EventKind = "panicked"
	// EventPowerButton: it was pressed.
	EventPowerButton EventKind = "power-button"
	// EventSnapshot is a snapshot that is whole, and EventRestored the start of a
	// guest from one.
	EventSnapshot EventKind = "snapshot"
	EventRestored EventKind = "restored"
	// EventMigrated is the guest's move to another host, where EventArrived is told.
	EventMigrated EventKind = "migrated"
	EventArrived  EventKind = "arrived"
	// EventEnded is the last one.
	EventEnded EventKind = "ended"
	// EventDeviceReset is a virtio device that does nothing any more until its
	// driver resets it: the driver broke the rules, or the host failed. It is told
	// the first time that this happens to a device.
	EventDeviceReset EventKind = "device-reset"
	// EventTrouble is other trouble that the guest or the host makes for a device,
	// once for each kind of it.
	EventTrouble EventKind = "trouble"
)

// Event is something that has happened to a guest.
type Event struct {
	Kind EventKind
	// Outcome is how the guest ended, with EventEnded.
	Outcome machine.Outcome
	// Path is the snapshot, with EventSnapshot and EventRestored, and the other host's
	// address, with EventMigrated and EventArrived.
	Path string
	// Device is the name of the device, with EventDeviceReset.
	Device string
	// Err is what went wrong, with EventDeviceReset, EventTrouble and EventEnded.
	Err error
}

func (v *VM) tell(e Event) {
	v.figures.count(e)
	if v.o.Event != nil {
		v.o.Event(e)
	}
}

// warn is the machine's.
func (v *VM) warn(err error) {
	e := Event{Kind: EventTrouble, Err: err}
	var reset *vpci.NeedsResetError
	if errors.As(err, &reset) {
		e.Kind, e.Device = EventDeviceReset, reset.Device
	}
	v.tell(e)
}
