package uffd

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Stats are what a Server has done.
type Stats struct {
	// Faults that were served. P50, P99 and Longest are how long that took, from when
	// the server learned of the fault: half of them, and 99 in 100, took no longer. The
	// first two are rounded up by a quarter at most.
	Faults            uint64
	P50, P99, Longest time.Duration
	// Bytes that were brought, with those that were pushed or came along, and Zeros
	// that were brought without a copy.
	Bytes, Zeros uint64
}

// Stats are what the server has done up to now.
func (s *Server) Stats() Stats {
	c := &s.stats
	st := Stats{Bytes: c.bytes.Load(), Zeros: c.zeros.Load(), Longest: time.Duration(c.longest.Load())}
	var counts [buckets]uint64
	for i := range counts {
		counts[i] = c.latency[i].Load()
		st.Faults += counts[i]
	}
	st.P50 = min(quantile(counts[:], st.Faults, 50), st.Longest)
	st.P99 = min(quantile(counts[:], st.Faults, 99), st.Longest)
	return st
}

// A histogram has four buckets for each power of two, in nanoseconds.
const (
	bucketBits = 2
	buckets    = 64 << bucketBits
)

type counters struct {
	bytes, zeros atomic.Uint64
	longest      atomic.Int64
	latency      [buckets]atomic.Uint64
}

func (c *counters) fault(took time.Duration) {
	c.latency[bucket(took)].Add(1)
	for {
		longest := c.longest.Load()
		if int64(took) <= longest || c.longest.CompareAndSwap(longest, int64(took)) {
			return
		}
	}
}

// bucket is that of a duration.
func bucket(d time.Duration) int {
	n := uint64(max(d, 1<<bucketBits))
	shift := bits.Len64(n) - 1 - bucketBits
	return shift<<bucketBits + int(n>>shift) - 1<<bucketBits
}

// bound is the longest duration of a bucket.
func bound(i int) time.Duration {
	shift := i >> bucketBits
	return time.Duration((uint64(i&(1<<bucketBits-1))+1<<bucketBits+1)<<shift - 1)
}

// quantile is what percent of all took no longer than.
func quantile(counts []uint64, all, percent uint64) time.Duration {
	var sum uint64
	for i, n := range counts {
		if sum += n; n > 0 && sum*100 >= all*percent {
			return bound(i)
		}
	}
	return 0
}
