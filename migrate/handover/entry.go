package handover

import "fmt"

// Entry is what a machine wants to be in the journal.
type Entry struct {
	Role  Role
	State RecordState
	// Base is the epoch in which the source owned the guest when the migration began.
	Base uint64
	// Epoch is the one that State speaks of.
	Epoch uint64
	// Settled says that the peer will never ask about this migration again.
	Settled bool
	// Reason says why, for people.
	Reason string
}

// Role is a side of a migration.
type Role uint8

// The roles.
const (
	RoleSource Role = iota + 1
	RoleDestination
)

var roleNames = [...]string{RoleSource: "source", RoleDestination: "destination"}

// String is the role's name.
func (r Role) String() string { return name(roleNames[:], r) }

// RecordState is what a record says of the guest.
type RecordState uint8

// The states.
const (
	// StateOwner: this host owns the guest in Epoch.
	StateOwner RecordState = iota + 1
	// StateReleased: this host gave the guest away that it owned in Epoch, and does
	// not know whether it was taken.
	StateReleased
	// StateGone: the guest that this host owned in Epoch is the peer's.
	StateGone
	// StateRefused: this host will never own the guest in Epoch.
	StateRefused
)

var stateNames = [...]string{StateOwner: "OWNER", StateReleased: "RELEASED", StateGone: "GONE", StateRefused: "REFUSED"}

// String is the state's name.
func (s RecordState) String() string { return name(stateNames[:], s) }

// MarshalText is String.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (r *Role) UnmarshalText(text []byte) error { return lookUp(roleNames[:], text, r) }

// MarshalText is String.
func (s RecordState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *RecordState) UnmarshalText(text []byte) error { return lookUp(stateNames[:], text, s) }

func lookUp[T ~uint8](names []string, text []byte, to *T) error {
	for i, n := range names {
		if i > 0 && n == string(text) {
			*to = T(i)
			return nil
		}
	}
	return fmt.Errorf("%.20q: want one of %q", text, names[1:])
}

// check says whether a machine could have wanted the entry.
func (e Entry) check() error {
	if err := checkEpoch(e.Base); err != nil {
		return fmt.Errorf("base: %w", err)
	}
	if len(e.Reason) > MaxReason {
		return fmt.Errorf("reason of %d bytes: want at most %d", len(e.Reason), MaxReason)
	}
	ahead := e.Epoch - e.Base
	fits := false
	switch e.State {
	case StateOwner:
		fits = e.Role == RoleSource && (ahead == 0 || ahead == 2) || e.Role == RoleDestination && ahead == 1
	case StateReleased, StateGone:
		fits = e.Role == RoleSource && ahead == 0
	case StateRefused:
		fits = e.Role == RoleDestination && ahead == 1
	}
	if !fits {
		return fmt.Errorf("a %s whose state is %s of epoch %d, of a migration that began in epoch %d: there is no such state", e.Role, e.State, e.Epoch, e.Base)
	}
	return nil
}
