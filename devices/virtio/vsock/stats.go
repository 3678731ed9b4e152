package vsock

import "sync/atomic"

// Stats count what has passed since the device was made.
type Stats struct {
	// Connections are those that there are now, Opened all that there ever were,
	// the refused ones not among them.
	Connections, Opened uint64
	// Received and Sent are bytes of data, without headers, as seen from the guest.
	Received, Sent uint64
}

// counts are those of Stats. The loop counts, any goroutine may read.
type counts struct{ opened, closed, received, sent atomic.Uint64 }

// Stats returns the counts. It may be called from any goroutine.
func (d *Device) Stats() Stats {
	// In this order, so that there never are less than none.
	closed := d.counts.closed.Load()
	opened := d.counts.opened.Load()
	return Stats{
		Connections: opened - closed, Opened: opened,
		Received: d.counts.received.Load(), Sent: d.counts.sent.Load(),
	}
}
