package vmm

// Paged is that of live.Incoming.
func (i *incoming) Paged(end func()) {
	i.endPaging = end
}

// Missing is that of live.Incoming.
func (i *incoming) Missing(why error, lost bool) {
	i.vm.tell(Event{Kind: EventTrouble, Err: why})
	if lost {
		i.vm.Kill(why)
	}
}

// unpage ends the bringing of memory that is still missing when the machine has ended: its
// processors and devices may wait for it.
func (s *session) unpage() {
	if s.endPaging == nil {
		return
	}
	select {
	case <-s.m.Ended():
	case <-s.ctx.Done():
	}
	s.endPaging()
}

// close closes the machine.
func (s *session) close() error {
	if s.endPaging != nil {
		s.endPaging()
	}
	return s.m.Close()
}
