// Package limit holds a device to so many bytes and operations a second, with
// two token buckets that a request takes from at once.
//
// A request goes through when neither bucket is empty, and takes what it needs
// even if that is more than there is: the bucket is then in debt, and the next
// request waits until that is paid. So a request larger than the burst is not
// stuck for ever, and the long-run rate is exact.
package limit

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Config says what the limits are. That of the zero value is none.
type Config struct {
	// Bandwidth counts bytes, Operations counts requests or packets.
	Bandwidth, Operations Rate
}

// Rate is the limit of one bucket.
type Rate struct {
	// PerSecond is how many tokens the bucket gets a second, at most MaxRate;
	// 0 is no limit.
	PerSecond uint64
	// Burst is what the bucket holds: how much may go at once after a pause.
	// 0 stands for what comes in in a tenth of a second.
	Burst uint64
	// OneTime is an additional burst that is there once, at the start: to
	// boot quickly, for example.
	OneTime uint64
}

// Change says what limits are to be instead of those that are. What is nil stays.
type Change struct {
	Bandwidth, Operations *Rate
}

// Of is c with the change made.
func (h Change) Of(c Config) Config {
	if h.Bandwidth != nil {
		c.Bandwidth = *h.Bandwidth
	}
	if h.Operations != nil {
		c.Operations = *h.Operations
	}
	return c
}

// Check refuses what New would refuse.
func (h Change) Check() error { return h.Of(Config{}).check() }

// MaxRate is the largest number in a Rate.
const MaxRate = 1 << 50

// burstParts is which part of a second's tokens a burst is by default.
const burstParts = 10

// Limiter takes requests from two buckets. A nil Limiter has no limits. Its
// methods may be called from any goroutine.
type Limiter struct {
	now func() time.Time
	// limited is set while there is a limit at all: without one, requests do not
	// queue for mu.
	limited atomic.Bool

	mu               sync.Mutex
	bytes, operation bucket
}

// New makes a limiter with full buckets. now is the source of time; nil stands for
// the clock.
func New(c Config, now func() time.Time) (*Limiter, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	l := &Limiter{now: now}
	l.Change(Change{&c.Bandwidth, &c.Operations})
	return l, nil
}

// Change replaces limits by others, which have passed Check and whose buckets are full.
// A request that waits for the old ones has to try again.
func (l *Limiter) Change(h Change) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if h.Bandwidth != nil {
		l.bytes = newBucket(*h.Bandwidth, now)
	}
	if h.Operations != nil {
		l.operation = newBucket(*h.Operations, now)
	}
	l.limited.Store(l.bytes.rate != 0 || l.operation.rate != 0)
}

func (c Config) check() error {
	for _, r := range []struct {
		name string
		Rate
	}{{"bandwidth", c.Bandwidth}, {"operations", c.Operations}} {
		if err := r.check(); err != nil {
			return fmt.Errorf("%s limit: %w", r.name, err)
		}
	}
	return nil
}

func (r Rate) check() error {
	switch {
	case r.PerSecond > MaxRate || r.Burst > MaxRate || r.OneTime > MaxRate:
		return fmt.Errorf("%+v has a number larger than %d", r, uint64(MaxRate))
	case r.PerSecond == 0 && (r.Burst != 0 || r.OneTime != 0):
		return fmt.Errorf("%+v has a burst but no rate; say how many a second, or leave out the burst", r)
	}
	return nil
}

// Take takes the tokens of a request and returns 0, or takes nothing and
// returns how long to wait before the next try.
func (l *Limiter) Take(bytes, operations uint64) time.Duration {
	if l == nil || !l.limited.Load() {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	wait := max(l.bytes.wait(now), l.operation.wait(now))
	if wait == 0 {
		l.bytes.take(bytes)
		l.operation.take(operations)
	}
	return wait
}
