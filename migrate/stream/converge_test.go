package stream

import (
	"math"
	"testing"
	"time"
)

func TestConverge(t *testing.T) {
	const ms = time.Millisecond
	// 1 GB/s, and the guest writes 100 MB/s: a rest of 100 MB after a round of 1 GB.
	calm := Observation{Round: 1, Sent: 1e9, Took: time.Second, Dirty: 1e8, Elapsed: time.Second}
	wild := Observation{Round: 2, Sent: 1e9, Took: time.Second, Dirty: 2e9, Elapsed: 2 * time.Second}
	with := func(o Observation, change func(*Observation)) Observation {
		change(&o)
		return o
	}
	for _, test := range []struct {
		name     string
		o        Observation
		p        Policy
		want     Action
		throttle int
		downtime time.Duration
	}{
		{"first round", calm, Policy{Downtime: 50 * ms}, Continue, 0, 100 * ms},
		{"fits", calm, Policy{Downtime: 100 * ms}, StopAndCopy, 0, 100 * ms},
		{"the state counts", with(calm, func(o *Observation) { o.StateTime = ms }), Policy{Downtime: 100 * ms}, Continue, 0, 101 * ms},
		{"its size counts", with(calm, func(o *Observation) { o.StateBytes = 1e7 }), Policy{Downtime: 100 * ms}, Continue, 0, 110 * ms},
		{"measured bandwidth", with(calm, func(o *Observation) { o.Bandwidth = 5e8 }), Policy{Downtime: 100 * ms}, Continue, 0, 200 * ms},
		{"nothing left", with(calm, func(o *Observation) { o.Dirty = 0 }), Policy{Downtime: ms}, StopAndCopy, 0, 0},
		{"only the state left", with(calm, func(o *Observation) { o.Dirty, o.StateTime = 0, 3*ms }), Policy{Downtime: ms}, Continue, 0, 3 * ms},
		{"nothing sent", Observation{Round: 1, Dirty: 1}, Policy{Downtime: ms}, Continue, 0, math.MaxInt64},
		{"an empty guest", Observation{Round: 1}, Policy{Downtime: ms}, StopAndCopy, 0, 0},

		{"second round gets less", with(calm, func(o *Observation) { o.Round = 2 }), Policy{Downtime: ms, AutoConverge: true}, Continue, 0, 100 * ms},
		{"just less", with(wild, func(o *Observation) { o.Dirty = 749e6 }), Policy{Downtime: ms, AutoConverge: true}, Continue, 0, 749 * ms},
		{"not less", with(wild, func(o *Observation) { o.Dirty = 750e6 }), Policy{Downtime: ms, AutoConverge: true}, RaiseThrottle, 60, 750 * ms},
		{"wild in the first round", with(wild, func(o *Observation) { o.Round = 1 }), Policy{Downtime: ms}, Continue, 0, 2 * time.Second},
		{"wild in the first round, throttle", with(wild, func(o *Observation) { o.Round = 1 }), Policy{Downtime: ms, AutoConverge: true}, RaiseThrottle, 85, 2 * time.Second},
		{"measured dirty rate", with(wild, func(o *Observation) { o.DirtyRate = 1e8 }), Policy{Downtime: ms, AutoConverge: true}, Continue, 0, 2 * time.Second},
		{"throttle again", with(wild, func(o *Observation) { o.Throttle = 20 }), Policy{Downtime: ms, AutoConverge: true}, RaiseThrottle, 88, 2 * time.Second},
		{"throttle by a step at least", with(wild, func(o *Observation) { o.Dirty, o.Throttle = 750e6, 88 }), Policy{Downtime: ms, AutoConverge: true}, RaiseThrottle, 98, 750 * ms},
		{"throttle last", with(wild, func(o *Observation) { o.Throttle = 90 }), Policy{Downtime: ms, AutoConverge: true}, RaiseThrottle, 99, 2 * time.Second},
		{"a throttle that helps stays", with(calm, func(o *Observation) { o.Round, o.Throttle = 3, 40 }), Policy{Downtime: ms, AutoConverge: true}, Continue, 40, 100 * ms},
		{"no more throttle", with(wild, func(o *Observation) { o.Throttle = 99 }), Policy{Downtime: ms, AutoConverge: true}, GiveUp, 99, 2 * time.Second},
		{"no more throttle, post-copy", with(wild, func(o *Observation) { o.Throttle = 99 }), Policy{Downtime: ms, AutoConverge: true, PostCopy: PostCopyAuto}, PostCopy, 99, 2 * time.Second},

		{"no way out, and none will come", wild, Policy{Downtime: ms}, GiveUp, 0, 2 * time.Second},
		{"no way out, but time", wild, Policy{Downtime: ms, Timeout: time.Minute}, Continue, 0, 2 * time.Second},
		{"no way out, but rounds", wild, Policy{Downtime: ms, Rounds: 3}, Continue, 0, 2 * time.Second},
		{"out of time", wild, Policy{Downtime: ms, Timeout: 2 * time.Second}, GiveUp, 0, 2 * time.Second},
		{"out of rounds", wild, Policy{Downtime: ms, Rounds: 2}, GiveUp, 0, 2 * time.Second},
		{"out of time with a rest that fits", wild, Policy{Downtime: 3 * time.Second, Timeout: time.Second}, StopAndCopy, 0, 2 * time.Second},
		{"post-copy out of time", calm, Policy{Downtime: ms, Timeout: time.Second, PostCopy: PostCopyAuto}, PostCopy, 0, 100 * ms},
		{"post-copy when stuck", wild, Policy{Downtime: ms, Timeout: time.Minute, PostCopy: PostCopyAuto}, PostCopy, 0, 2 * time.Second},
		{"post-copy not needed", calm, Policy{Downtime: ms, PostCopy: PostCopyAuto}, Continue, 0, 100 * ms},
		{"post-copy now", calm, Policy{Downtime: ms, PostCopy: PostCopyNow}, PostCopy, 0, 100 * ms},
		{"post-copy now, not needed", calm, Policy{Downtime: time.Second, PostCopy: PostCopyNow}, StopAndCopy, 0, 100 * ms},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Converge(test.o, test.p)
			if got.Action != test.want || got.Throttle != test.throttle || got.Downtime.Round(ms/10) != test.downtime.Round(ms/10) {
				t.Errorf("%v, throttle %d, downtime %v (%s), want %v, %d, %v", got.Action, got.Throttle, got.Downtime, got.Reason, test.want, test.throttle, test.downtime)
			}
			if got.Reason == "" {
				t.Error("no reason")
			}
		})
	}
}

// TestConvergeEnds follows a guest whose writes the throttle slows down: whatever its
// rate, the copy ends.
func TestConvergeEnds(t *testing.T) {
	const bandwidth = 1e9
	for _, rate := range []float64{0, 1e6, 5e8, 9e8, 1e9, 3e9, 5e10} {
		o := Observation{Sent: 8e9, StateTime: time.Millisecond}
		p := Policy{Downtime: 30 * time.Millisecond, AutoConverge: true}
		rounds := 0
		for d := (Decision{}); d.Action != StopAndCopy; rounds++ {
			if d.Action == GiveUp && rate*0.01 >= progress*bandwidth || rounds > 100 {
				t.Errorf("rate %g: after %d rounds: %+v", rate, rounds, d)
				break
			}
			o.Round, o.Throttle = o.Round+1, d.Throttle
			o.Took = max(1, time.Duration(float64(o.Sent)/bandwidth*float64(time.Second)))
			o.Elapsed += o.Took
			o.Dirty = uint64(min(8e9, rate*float64(100-o.Throttle)/100*o.Took.Seconds()))
			d = Converge(o, p)
			o.Sent = o.Dirty
		}
		t.Logf("rate %g: %d rounds, throttle %d%%, %v", rate, rounds, o.Throttle, o.Elapsed)
	}
}
