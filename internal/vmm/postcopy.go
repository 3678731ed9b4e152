package vmm

import (
	"time"

	"github.com/godwit-vmm/godwit/migrate/live"
)

// Paged is that of live.Incoming.
func (i *incoming) Paged(p *live.Paging) { i.paging = p }

// Missing is that of live.Incoming.
func (i *incoming) Missing(why error, lost bool) {
	i.vm.tell(Event{Kind: EventTrouble, Err: why})
	if lost {
		i.vm.Kill(why)
	}
}

// MissingMemory is memory of a guest that came from another host, and runs, that is still
// there.
type MissingMemory struct {
	// Bytes of it.
	Bytes uint64
	// Waits is why none of it comes for now; nil while it comes.
	Waits error
}

// Missing says what memory of the guest is still at the host that it came from, and false
// if all is here.
func (v *VM) Missing() (MissingMemory, bool) {
	s := v.current.Load()
	if s == nil || s.paging == nil {
		return MissingMemory{}, false
	}
	m := MissingMemory{Bytes: s.paging.Left(), Waits: s.paging.Waits()}
	return m, m.Bytes > 0
}

// stopTime is how long processors may take to stop before the memory is given up that they
// may wait for. KVM sends a processor that touches such a page SIGBUS, which would end this
// process, where the signal that stops it only ends its waiting; a device's waiting ends
// with an error when the page is given up, and not before.
const stopTime = 2 * time.Second

// unpage ends the bringing of memory that is still missing when the machine has ended: its
// processors and devices may wait for it.
func (s *session) unpage() {
	select {
	case <-s.m.Ended():
		s.m.AwaitStop(stopTime)
	case <-s.ctx.Done():
	}
	s.paging.End()
}

// close closes the machine.
func (s *session) close() error {
	if s.paging != nil {
		s.paging.End()
	}
	return s.m.Close()
}
