package vpci

import (
	"fmt"

	"github.com/godwit-vmm/godwit/memory"
)

// ring serves a doorbell write that the hypervisor did not take (§4.1.5.2). The
// address says which queue is meant; the value says so again.
func (f *Function) ring(offset uint64) {
	if i := offset / notifyMultiplier; i < uint64(len(f.queues)) && offset%notifyMultiplier == 0 {
		f.queues[i].Kick()
	}
}

// moveDoorbells follows the BAR. A doorbell that the hypervisor refuses works
// all the same, slowly, through ring.
func (f *Function) moveDoorbells(base memory.GPA, mapped bool) {
	if f.config.Doorbells == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.queues {
		q := &f.queues[i]
		at := doorbell(base, i)
		switch {
		case mapped && !q.bell:
			err := f.config.Doorbells.Assign(q.EventFD(), at)
			q.bell = err == nil
			f.noteBell(err)
		case !mapped && q.bell:
			q.bell = false
			f.noteBell(f.config.Doorbells.Remove(q.EventFD(), at))
		}
	}
}

func (f *Function) noteBell(err error) {
	if err != nil && !f.refusedBell && f.config.Warn != nil {
		f.refusedBell = true
		f.config.Warn(fmt.Errorf("virtio device %s: doorbell: %w", f.config.Name, err))
	}
}

// doorbell is where the doorbell of a queue is when the BAR is at base.
func doorbell(base memory.GPA, queue int) memory.GPA {
	return base + notifyPage + memory.GPA(queue)*notifyMultiplier
}
