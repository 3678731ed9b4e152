package blk

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Stats count what has been done since the device was made, also of requests that
// failed, but not of those that were malformed.
type Stats struct {
	Read, Write Counts
	// Flushes and Discards have no bytes; writing zeroes is among the latter.
	Flushes, Discards Counts
}

// Counts are those of one kind of request.
type Counts struct {
	// Requests were done, Failed of them with an error of the host.
	Requests, Failed uint64
	// Bytes were read or written.
	Bytes uint64
	// Times has how many of the requests took as long as each of TimeBounds at
	// most, and longer than the one before; the last has the rest. Time is what all
	// took together. It begins when the device takes a request from the queue.
	Times [timeBuckets]uint64
	Time  time.Duration
}

// TimeBounds are the bounds of Counts.Times: from a microsecond on, each four times
// the one before.
func TimeBounds() []time.Duration {
	bounds := make([]time.Duration, timeBuckets-1)
	for i := range bounds {
		bounds[i] = time.Microsecond << (2 * i)
	}
	return bounds
}

// timeBuckets is the length of Counts.Times: the last bound is 4.2 s.
const timeBuckets = 13

// timeBucket is the place of a time in Counts.Times.
func timeBucket(d time.Duration) int {
	// Whole microseconds, and none for one that is full.
	us := uint64(max(d-1, 0) / time.Microsecond)
	return min((bits.Len64(us)+1)/2, timeBuckets-1)
}

// counts are those of a kind of work on one queue. Its service writes them, anybody
// reads them.
type counts struct {
	requests, failed, bytes, time atomic.Uint64 // time in nanoseconds
	times                         [timeBuckets]atomic.Uint64
}

func (c *counts) add(bytes uint64, took time.Duration, failed bool) {
	c.requests.Add(1)
	c.times[timeBucket(took)].Add(1)
	c.time.Add(uint64(max(took, 0)))
	if failed {
		c.failed.Add(1)
		return
	}
	c.bytes.Add(bytes)
}

func (c *Counts) add(from *counts) {
	c.Requests += from.requests.Load()
	c.Failed += from.failed.Load()
	c.Bytes += from.bytes.Load()
	c.Time += time.Duration(from.time.Load())
	for i := range c.Times {
		c.Times[i] += from.times[i].Load()
	}
}

// Stats returns the counts. It may be called from any goroutine.
func (d *Device) Stats() Stats {
	var s Stats
	for _, q := range d.services {
		s.Read.add(&q.counts[workRead])
		s.Write.add(&q.counts[workWrite])
		s.Flushes.add(&q.counts[workFlush])
		s.Discards.add(&q.counts[workDiscard])
		s.Discards.add(&q.counts[workZeroes])
	}
	return s
}
