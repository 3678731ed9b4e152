package net

import (
	"runtime"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

const (
	// spinMin and spinMax bound for how long an empty queue is watched.
	spinMin = 10 * time.Microsecond
	spinMax = 40 * time.Microsecond
	// spinStep is how often the queue is looked at between two looks at the
	// clock.
	spinStep = 32
)

// spin decides for how long an empty queue is watched before the driver is asked
// for a kick. A kick costs the guest a trip to the host and this side a wake-up;
// a frame that comes within that time is had more cheaply by watching. The time
// grows while sleeps turn out to be short, and is zero after a long one.
type spin struct {
	limit time.Duration
	slept time.Time // since when; zero while awake
	alone bool      // there is no processor on which the driver could go on
}

func newSpin() spin { return spin{alone: runtime.NumCPU() == 1} }

// pop takes a frame that comes soon.
func (s *spin) pop(q *virtio.Queue, c *virtio.Chain) (bool, error) {
	if s.limit == 0 {
		return false, nil
	}
	for end := time.Now().Add(s.limit); ; {
		for range spinStep {
			if ok, err := q.Pop(c); ok || err != nil {
				return ok, err
			}
		}
		if time.Now().After(end) {
			return false, nil
		}
	}
}

// sleeps is called when there was nothing.
func (s *spin) sleeps() { s.slept = time.Now() }

// asleep tells whether nothing has come since sleeps.
func (s *spin) asleep() bool { return !s.slept.IsZero() }

// woken is called when the driver has given something again.
func (s *spin) woken() {
	switch {
	case s.slept.IsZero(), s.alone:
	case time.Since(s.slept) > spinMax:
		s.limit = 0
	default:
		s.limit = min(max(2*s.limit, spinMin), spinMax)
	}
	s.slept = time.Time{}
}
