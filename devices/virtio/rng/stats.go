package rng

// Stats count what the guest has got since the device was made.
type Stats struct {
	Requests, Bytes uint64
}

// Stats returns the counts. It may be called from any goroutine.
func (d *Device) Stats() Stats { return Stats{Requests: d.requests.Load(), Bytes: d.bytes.Load()} }
