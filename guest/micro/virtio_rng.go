package micro

import (
	"cmp"
	"fmt"
)

// Entropy is a program that reads random bytes from a virtio entropy device
// (§5.4). The bytes of request i of those in flight are at BufferStart + i*Size.
type Entropy struct {
	Driver
	// Size of a request in bytes, 1 to 1 MiB.
	Size int
	// Depth is how many requests are in flight; 0 means 1.
	Depth int
	// Requests is their number, or Forever.
	Requests uint64
}

// ELF is the program. The result count is the number of requests.
func (e Entropy) ELF() ([]byte, error) {
	e.Depth = cmp.Or(e.Depth, 1)
	if e.Size < 1 || e.Size > 1<<20 {
		return nil, fmt.Errorf("micro: requests of %d random bytes: want 1 to 1 MiB", e.Size)
	}
	if e.Depth < 1 || e.Depth > maxDepth {
		return nil, fmt.Errorf("micro: %d requests in flight: want 1 to %d", e.Depth, maxDepth)
	}
	d := newDriver(e.Driver)
	set := d.newRequests(0, e.Depth, 1, 0)
	for i := range e.Depth {
		d.describe(set, i, []buffer{{BufferStart + uint64(i*e.Size), e.Size, true}})
	}
	d.begin(entropyDevice, 0, 0)
	prepare := d.routine(func() { d.send(set) })
	complete := d.routine(func() {
		d.receive(set)
		// The device may give less than asked for, but not nothing (§5.4.6).
		d.Lea(RAX, Mem{RCX, -1})
		d.OpImm(Cmp, RAX, int32(e.Size))
		d.failUnless(Below, StatusBadUsed, RCX)
		d.addTo(resultBytes, RCX)
		d.OpMemImm(Add, Quad, result(ResultCount), 1)
		d.Mov(RAX, R11)
		d.record()
	})
	d.stampTo(result(ResultFirstTSC))
	d.MovImm(R14, total(e.Requests))
	d.pump(set, prepare, complete)
	d.stampTo(result(ResultLastTSC))
	return d.finish()
}
