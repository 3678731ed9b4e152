package limit

import "fmt"

// State is a saved Limiter. The limits themselves are not part of it: they may
// be others where it is restored.
type State struct {
	Version               uint32
	Bandwidth, Operations BucketState
}

// BucketState is what a bucket holds.
type BucketState struct {
	// Tokens is negative when the bucket is in debt.
	Tokens  int64
	OneTime uint64
}

const stateVersion = 1

// Save returns what is in the buckets, now.
func (l *Limiter) Save() State {
	if l == nil {
		return State{Version: stateVersion}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.bytes.fill(now)
	l.operation.fill(now)
	return State{
		Version:    stateVersion,
		Bandwidth:  BucketState{l.bytes.tokens, l.bytes.oneTime},
		Operations: BucketState{l.operation.tokens, l.operation.oneTime},
	}
}

// Restore fills the buckets as they were, as far as the limits of this Limiter
// allow. What would have come in since is not there.
func (l *Limiter) Restore(s State) error {
	if s.Version != stateVersion {
		return fmt.Errorf("saved limits have version %d, this program knows %d", s.Version, stateVersion)
	}
	for _, b := range []BucketState{s.Bandwidth, s.Operations} {
		if b.Tokens < -MaxRate || b.Tokens > MaxRate || b.OneTime > MaxRate {
			return fmt.Errorf("saved limits have a bucket with %d and %d tokens, want at most %d", b.Tokens, b.OneTime, int64(MaxRate))
		}
	}
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes.restore(s.Bandwidth)
	l.operation.restore(s.Operations)
	now := l.now()
	l.bytes.filled, l.operation.filled = now, now
	return nil
}

func (b *bucket) restore(s BucketState) {
	if b.rate == 0 {
		return
	}
	b.tokens = min(s.Tokens, int64(b.burst))
	b.oneTime = min(s.OneTime, b.oneTime)
}
