package virtio

import "time"

// pollTime is how long a Poller looks for the next request. It is about what a
// doorbell costs the driver and the wake-up that follows costs the device, so
// that a device that polls in vain takes no more than twice the time.
const pollTime = 50 * time.Microsecond

// How a Poller learns. Credit is what it has left to lose.
const (
	pollCredit    = 8  // a run of that many polls in vain is too much
	pollTrialWon  = 4  // credit after a trial that found something
	pollTrialsOff = 64 // one of how many polls is a trial at the least
)

// Poller looks for the next request before a device goes to sleep: a driver
// that has just seen a completion often has the next request in a few
// microseconds, for which a doorbell and a wake-up take ten times longer.
// Whether that is so shows: a Poller that finds nothing stops looking, but for
// a trial now and then.
//
// The zero value is ready for use, by one goroutine at a time.
type Poller struct {
	credit int
	// pause is how many polls are left out between trials, and skipped is
	// how many of them have been.
	pause, skipped int
}

// Poll calls ready until it returns true, and returns true then, or false when
// that takes too long. The driver need not be notified of requests meanwhile
// (Queue.DisableKicks).
func (p *Poller) Poll(ready func() bool) bool {
	if p.credit == 0 && p.skipped < p.pause {
		p.skipped++
		return false
	}
	found := pollFor(pollTime, ready)
	p.learn(found)
	return found
}

func (p *Poller) learn(found bool) {
	switch {
	case found && p.credit == 0:
		p.credit, p.pause = pollTrialWon, 0
	case found:
		p.credit = min(p.credit+1, pollCredit)
	case p.credit > 0:
		p.credit--
	default:
		p.pause = min(2*p.pause+1, pollTrialsOff-1)
	}
	p.skipped = 0
}

func pollFor(d time.Duration, ready func() bool) bool {
	for start := time.Now(); ; {
		// The clock costs more than a look at the ring.
		for range 4 {
			if ready() {
				return true
			}
		}
		if time.Since(start) > d {
			return false
		}
	}
}

// Available tells whether Pop has something to say: a chain or an error. It
// writes nothing that the driver sees.
func (q *Queue) Available() bool {
	n, err := q.pending()
	return n > 0 || err != nil
}
