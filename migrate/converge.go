package migrate

// Progress is what is known of a copy after a round.
type Progress struct {
	// Round counts from 1.
	Round int
	// Dirty is how many bytes the guest has written since the round began,
	// which are the next to be copied.
	Dirty uint64
	// Before is how many bytes the round copied.
	Before uint64
}

// Limits say when a copy is content.
type Limits struct {
	// Rest is how many bytes may be left for the pause.
	Rest uint64
	// Rounds is the largest number of rounds.
	Rounds int
}

// enough decides whether the guest is to be paused for what is left: because that is
// little; because the rounds do not make it less any more, for the guest writes
// nearly as fast as they copy; or because there were many already.
func (l Limits) enough(p Progress) bool {
	switch {
	case p.Dirty <= l.Rest, p.Round >= l.Rounds:
		return true
	case p.Round == 1:
		return false
	}
	return p.Dirty > p.Before-p.Before/4
}
