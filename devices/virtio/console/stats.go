package console

// Stats count the bytes of the console since it was made, as seen from the guest.
type Stats struct {
	// Read is what the guest has taken of its input.
	Read uint64
	// Written is what it has written, and Dropped how much of that nobody will get
	// to see, because Config.Out takes no more.
	Written, Dropped uint64
}

// Stats returns the counts. It may be called from any goroutine.
func (d *Device) Stats() Stats {
	d.mu.Lock()
	s := Stats{Read: d.read}
	d.mu.Unlock()
	d.out.mu.Lock()
	defer d.out.mu.Unlock()
	s.Written, s.Dropped = d.out.taken, d.out.dropped
	return s
}
