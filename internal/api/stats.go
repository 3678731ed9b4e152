package api

import (
	"errors"
	"time"

	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/machine"
)

// getStats says how the guest is, for lists of guests.
func (s *Server) getStats(*request) (any, error) {
	c := s.vm.Config()
	answer := Stats{
		State: s.vm.Phase().String(), CPUs: c.CPUs, Memory: c.Memory, Granted: c.Memory, Started: s.vm.Started().UTC(),
	}
	if !answer.Started.IsZero() {
		answer.Uptime = time.Since(answer.Started).Microseconds()
	}
	err := s.vm.Use(func(m *machine.Machine) (err error) {
		answer.Granted = m.MemoryGranted()
		answer.Used, err = m.MemoryUsed()
		return err
	})
	if errors.Is(err, vmm.ErrNotStarted) || errors.Is(err, vmm.ErrEnded) {
		err = nil
	}
	return answer, err
}
