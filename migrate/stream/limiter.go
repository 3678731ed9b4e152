package stream

import (
	"sync"
	"time"
)

// Limiter limits how many bytes all connections of a sender put on the wire in a
// second. It may be used and set by any goroutine; nil is no limit.
type Limiter struct {
	mu sync.Mutex
	// rate in bytes per second; 0 is no limit.
	rate float64
	// credit is how many bytes may be sent at the time of last. It is negative
	// when more was sent, which later senders have to wait for.
	credit  float64
	last    time.Time
	waiting int
	// changed is closed, and made anew, when the rate changes.
	changed chan struct{}
}

const (
	// saved is how much a sender that was idle may send at once, in seconds, and
	// slice how much is given out at once.
	saved, slice = 0.02, 0.01
	// late is how much is not lost when a sender that waits is woken too late, in seconds.
	late = 0.25

	// leastSlice, in bytes, keeps slow limits from sending byte by byte.
	leastSlice = 1024
)

// NewLimiter makes a limiter of so many bytes a second, 0 for no limit.
func NewLimiter(bytesPerSecond uint64) *Limiter {
	return &Limiter{rate: float64(bytesPerSecond), last: time.Now(), changed: make(chan struct{})}
}

// Set changes the limit, also for those who wait.
func (l *Limiter) Set(bytesPerSecond uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill()
	// A debt of the old rate would hold up those who send at a lower one.
	l.credit = max(l.credit, -slice*float64(bytesPerSecond))
	l.rate = float64(bytesPerSecond)
	close(l.changed)
	l.changed = make(chan struct{})
}

// take returns how many of the want bytes may be sent now. It waits until there are
// some; after done is closed it returns 0.
func (l *Limiter) take(done <-chan struct{}, want int) int {
	if l == nil {
		return want
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		l.refill()
		if l.rate == 0 {
			return want
		}
		if l.credit > 0 {
			n := min(want, max(leastSlice, int(l.rate*slice)))
			l.credit -= float64(n)
			return n
		}
		wait := time.Duration((-l.credit/l.rate)*float64(time.Second)) + time.Microsecond
		if !l.sleep(done, wait) {
			return 0
		}
	}
}

// spend counts n bytes that do not wait: those that are sent later do. A negative number
// was taken and not sent.
func (l *Limiter) spend(n int) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill()
	if l.rate > 0 {
		l.credit -= float64(n)
	}
}

// refill adds what time has brought.
func (l *Limiter) refill() {
	now := time.Now()
	keep := saved
	if l.waiting > 0 {
		keep = late
	}
	l.credit = max(l.credit, min(l.credit+now.Sub(l.last).Seconds()*l.rate, keep*l.rate))
	l.last = now
}

// sleep waits without the lock; it returns false when done is closed.
func (l *Limiter) sleep(done <-chan struct{}, wait time.Duration) bool {
	changed := l.changed
	l.waiting++
	l.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	ok := true
	select {
	case <-timer.C:
	case <-changed:
	case <-done:
		ok = false
	}
	l.mu.Lock()
	l.refill()
	l.waiting--
	return ok
}
