package vpci

import (
	"fmt"

	"github.com/godwit-vmm/godwit/memory"
)

// settable returns the selected queue if its registers may be written: between
// FEATURES_OK and DRIVER_OK (§3.1.1), and before the queue is enabled. Whatever
// a driver writes at other times has no effect.
func (f *Function) settable() *queue {
	const between = statusFeaturesOK
	if f.status.Load()&(statusFeaturesOK|statusDriverOK|statusFailed) != between || f.Err() != nil {
		return nil
	}
	if q := f.selected(); q != nil && !q.Enabled() {
		return q
	}
	return nil
}

// writeQueueSize takes a smaller size than the largest.
func (f *Function) writeQueueSize(x uint64) {
	if q := f.settable(); q != nil && x != 0 && x&(x-1) == 0 && x <= uint64(q.max) {
		q.config.Size = uint16(x)
	}
}

// setAddress takes half of an address: that which starts at the given bit.
func setAddress(field func(*queue) *memory.GPA, shift int) func(*Function, uint64) {
	return func(f *Function, x uint64) {
		if q := f.settable(); q != nil {
			a := field(q)
			*a = *a&^(0xffff_ffff<<shift) | memory.GPA(x)<<shift
		}
	}
}

// enableQueue is a write to queue_enable, of which only the first 1 counts
// (§4.1.4.3.2). A queue that cannot be where the driver says is the end of the
// device until its reset.
func (f *Function) enableQueue(x uint64) {
	q := f.settable()
	if q == nil || x != 1 {
		return
	}
	if err := q.Enable(q.config, f.features); err != nil {
		f.fail(f.life.Load(), fmt.Errorf("queue %d: %w", f.queueSelect, err))
	}
}

// vector is what is kept of a vector number: NO_VECTOR for one that there is
// not, from which the driver learns it (§4.1.5.1.2.1).
func (f *Function) vector(x uint64) uint32 {
	if x >= uint64(f.msix.Vectors()) {
		return noVector
	}
	return uint32(x)
}

// writeQueueVector may come at any time: workers read the vector when they
// interrupt.
func (f *Function) writeQueueVector(x uint64) {
	if q := f.selected(); q != nil {
		q.vector.Store(f.vector(x))
	}
}
