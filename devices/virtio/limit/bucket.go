package limit

import (
	"math"
	"math/bits"
	"time"
)

// patience is how long a wait for an empty bucket is at least, if the burst
// allows it: with a high rate, a timer for every single token costs more than
// the requests do.
const patience = time.Millisecond

// bucket has tokens that come in at a rate. One without a rate is never empty.
type bucket struct {
	rate, burst uint64
	// oneTime is what is left of the additional burst. It is used up first.
	oneTime uint64
	// tokens is at most burst, and negative when in debt.
	tokens int64
	// filled is the time up to which tokens have come in.
	filled time.Time
}

func newBucket(r Rate, now time.Time) bucket {
	burst := r.Burst
	if burst == 0 {
		burst = max(1, r.PerSecond/burstParts)
	}
	return bucket{rate: r.PerSecond, burst: burst, oneTime: r.OneTime, tokens: int64(burst), filled: now}
}

// fill lets in what has come since the last time.
func (b *bucket) fill(now time.Time) {
	if b.rate == 0 {
		return
	}
	elapsed := now.Sub(b.filled)
	if elapsed <= 0 {
		return
	}
	room := uint64(int64(b.burst) - b.tokens)
	n := mulDiv(uint64(elapsed), b.rate, uint64(time.Second))
	if n >= room {
		b.tokens, b.filled = int64(b.burst), now
		return
	}
	// Only the time that whole tokens took: the rest counts next time. The
	// quotient is rounded up, or the same time would buy a bit more.
	b.tokens += int64(n)
	b.filled = b.filled.Add(timeFor(n, b.rate))
}

// wait fills the bucket and returns how long until it is not empty.
func (b *bucket) wait(now time.Time) time.Duration {
	if b.rate == 0 {
		return 0
	}
	b.fill(now)
	if b.tokens > 0 || b.oneTime > 0 {
		return 0
	}
	enough := max(1, min(b.burst, mulDiv(uint64(patience), b.rate, uint64(time.Second))))
	until := timeFor(uint64(int64(enough)-b.tokens), b.rate)
	return max(1, until-now.Sub(b.filled))
}

// take takes n tokens from a bucket that is not empty.
func (b *bucket) take(n uint64) {
	if b.rate == 0 {
		return
	}
	once := min(n, b.oneTime)
	b.oneTime -= once
	b.tokens -= int64(min(n-once, MaxRate))
}

// timeFor is how long n tokens take to come in, rounded up to a nanosecond.
func timeFor(n, rate uint64) time.Duration {
	d := mulDiv(n, uint64(time.Second), rate)
	if d >= math.MaxInt64 {
		return math.MaxInt64
	}
	if mulDiv(uint64(d), rate, uint64(time.Second)) < n {
		d++
	}
	return time.Duration(d)
}

// mulDiv is a*b/c without overflow in between, and at most the largest number.
func mulDiv(a, b, c uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	if hi >= c {
		return math.MaxUint64
	}
	q, _ := bits.Div64(hi, lo, c)
	return q
}
