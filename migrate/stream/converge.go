package stream

import (
	"fmt"
	"math"
	"time"
)

// Observation is what a round of a copy showed.
type Observation struct {
	// Round counts from 1. Sent bytes were copied in it, which took Took.
	Round int
	Sent  uint64
	Took  time.Duration
	// Dirty is how many bytes the guest wrote since the round began and are to be
	// copied next.
	Dirty uint64
	// DirtyRate is how many bytes a second become dirty, and Bandwidth how many are
	// copied, where there is a better measurement than this round's; else 0.
	DirtyRate, Bandwidth float64
	// Elapsed is the time since the migration began.
	Elapsed time.Duration
	// StateBytes is the size of all that is not memory, and StateTime the time that the
	// rest of the handover takes: save, load, round trips, fsyncs.
	StateBytes uint64
	StateTime  time.Duration
	// Throttle is how much of their time is taken from the vCPUs now, in percent.
	Throttle int
}

// PostCopyPolicy says when a guest may run at the destination before all of its memory
// is there.
type PostCopyPolicy int

// The policies: never; when it does not converge; after the first round.
const (
	PostCopyNever PostCopyPolicy = iota
	PostCopyAuto
	PostCopyNow
)

// Policy is what the user wants. Zero for Rounds or Timeout is no limit.
type Policy struct {
	// Downtime is how long the guest may stand still.
	Downtime     time.Duration
	AutoConverge bool
	PostCopy     PostCopyPolicy
	Rounds       int
	Timeout      time.Duration
}

// Action is what to do after a round.
type Action int

// The actions: copy what is dirty in another round; pause the guest and copy the rest;
// take more time from the vCPUs and go on; hand over and copy the rest afterwards; leave
// the guest where it is.
const (
	Continue Action = iota
	StopAndCopy
	RaiseThrottle
	PostCopy
	GiveUp
)

// String is the action as reports and tests show it.
func (a Action) String() string {
	return [...]string{"continue", "stop-and-copy", "raise-throttle", "post-copy", "give-up"}[a]
}

// Decision is what Converge decides.
type Decision struct {
	Action Action
	// Throttle is the throttle from now on, in percent.
	Throttle int
	// Downtime is how long the guest would stand still if it were paused now.
	Downtime time.Duration
	// Reason is a sentence that says why.
	Reason string
}

// The steps in which vCPUs are throttled, in percent.
const (
	throttleStep = 10
	lastThrottle = 99
)

// calm is the part of the bandwidth that a throttled guest is to write. It writes more
// than is seen when it writes the same pages again, so a step may not be enough.
const calm = 0.3

// progress is how much smaller a round has to make the rest to be worth it: the next
// rest is expected to be less than this part of the present one.
const progress = 0.75

// Converge decides what to do after a round of copying memory.
func Converge(o Observation, p Policy) Decision {
	d := Decision{Throttle: o.Throttle, Downtime: o.downtime()}
	if d.Downtime <= p.Downtime {
		return d.because(StopAndCopy, "the rest takes %v, within the %v that were asked for", round(d.Downtime), p.Downtime)
	}
	if p.PostCopy == PostCopyNow {
		return d.because(PostCopy, "the first round is done")
	}
	if limit := p.exceeded(o); limit != "" {
		if p.PostCopy == PostCopyAuto {
			return d.because(PostCopy, "%s", limit)
		}
		return d.because(GiveUp, "%s, and the rest would still take %v: allow more with --downtime, raise --bandwidth, or try --auto-converge or --postcopy auto", limit, round(d.Downtime))
	}
	// One round is little to give up for, but enough to slow a guest down.
	if o.Round == 1 && !p.AutoConverge || o.dirtyRate() < progress*o.bandwidth() {
		return d.because(Continue, "the rest becomes less")
	}
	return d.stuck(o, p)
}

// stuck decides for a guest that writes nearly as fast as its memory is copied, or faster.
func (d Decision) stuck(o Observation, p Policy) Decision {
	switch {
	case p.AutoConverge && o.Throttle < lastThrottle:
		d.Throttle = o.nextThrottle()
		return d.because(RaiseThrottle, "the guest writes %s/s and %s/s are copied", mega(o.dirtyRate()), mega(o.bandwidth()))
	case p.PostCopy == PostCopyAuto:
		return d.because(PostCopy, "the guest writes %s/s and %s/s are copied", mega(o.dirtyRate()), mega(o.bandwidth()))
	case p.Rounds == 0 && p.Timeout == 0:
		return d.because(GiveUp, "the guest writes %s/s and %s/s are copied: allow more than %v with --downtime, raise --bandwidth, or try --auto-converge or --postcopy auto", mega(o.dirtyRate()), mega(o.bandwidth()), round(d.Downtime))
	}
	return d.because(Continue, "the guest writes as fast as it is copied; it may write less later")
}

// nextThrottle leaves the vCPUs as much of the time that they have now as they may need to
// write a calm part of the bandwidth, and is at least a step.
func (o Observation) nextThrottle() int {
	runs := float64(100 - o.Throttle)
	if r := o.dirtyRate(); r > 0 {
		runs *= min(1, calm*o.bandwidth()/r)
	}
	return min(max(100-int(runs), o.Throttle+throttleStep), lastThrottle)
}

func (d Decision) because(a Action, format string, args ...any) Decision {
	d.Action, d.Reason = a, fmt.Sprintf(format, args...)
	return d
}

// exceeded says which limit has been reached, if one has.
func (p Policy) exceeded(o Observation) string {
	switch {
	case p.Timeout > 0 && o.Elapsed >= p.Timeout:
		return fmt.Sprintf("the migration has taken %v, of at most %v", round(o.Elapsed), p.Timeout)
	case p.Rounds > 0 && o.Round >= p.Rounds:
		return fmt.Sprintf("there were %d rounds, of at most %d", o.Round, p.Rounds)
	}
	return ""
}

// downtime predicts how long a pause would be.
func (o Observation) downtime() time.Duration {
	bytes := float64(o.Dirty) + float64(o.StateBytes)
	if bytes == 0 {
		return o.StateTime
	}
	d := bytes/o.bandwidth()*float64(time.Second) + float64(o.StateTime)
	if !(d < math.MaxInt64) { // also if it is not a number
		return math.MaxInt64
	}
	return time.Duration(d)
}

// bandwidth and dirtyRate are in bytes a second.
func (o Observation) bandwidth() float64 {
	if o.Bandwidth > 0 {
		return o.Bandwidth
	}
	return perSecond(o.Sent, o.Took)
}

func (o Observation) dirtyRate() float64 {
	if o.DirtyRate > 0 {
		return o.DirtyRate
	}
	return perSecond(o.Dirty, o.Took)
}

// perSecond is 0 for nothing. A clock that saw no time pass counts as a nanosecond.
func perSecond(bytes uint64, took time.Duration) float64 {
	return float64(bytes) / max(took, 1).Seconds()
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

func mega(bytes float64) string { return fmt.Sprintf("%.1f MB", bytes/1e6) }
