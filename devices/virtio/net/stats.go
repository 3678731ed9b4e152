package net

// Stats count what has passed since the device was made.
type Stats struct {
	Receive, Send Counts
}

// Counts are those of one direction, as seen from the guest.
type Counts struct {
	// Frames and Bytes went through; the bytes include Ethernet headers.
	Frames, Bytes uint64
	// Dropped frames did not: the guest had no room for them, or the host
	// refused them.
	Dropped uint64
}

// Stats returns the counts. It may be called from any goroutine.
func (d *Device) Stats() Stats {
	var s Stats
	for _, p := range d.pairs {
		s.Receive.add(&p.receive.counts)
		s.Send.add(&p.send.counts)
	}
	return s
}

func (c *Counts) add(from *counts) {
	c.Frames += from.frames.Load()
	c.Bytes += from.bytes.Load()
	c.Dropped += from.dropped.Load()
}
