package blk

import "sync/atomic"

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
}

// counts are those of a kind of work on one queue. Its service writes them, anybody
// reads them.
type counts struct {
	requests, failed, bytes atomic.Uint64
}

func (c *counts) add(bytes uint64, failed bool) {
	c.requests.Add(1)
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
