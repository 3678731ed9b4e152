package machine

import "fmt"

// Outcome is how a guest that did not crash came to its end.
type Outcome int

const (
	// PoweredOff means that the guest switched the machine off.
	PoweredOff Outcome = iota + 1
	// Reset means that the guest wants the machine to start anew.
	Reset
	// Panicked means that the guest's kernel reported a panic.
	Panicked
	// Killed means that Run's context ended.
	Killed
)

// String is the outcome as a sentence needs it: "the guest ...".
func (o Outcome) String() string {
	switch o {
	case PoweredOff:
		return "powered off"
	case Reset:
		return "asked for a reset"
	case Panicked:
		return "panicked"
	case Killed:
		return "was killed"
	}
	return fmt.Sprintf("outcome %d", int(o))
}
