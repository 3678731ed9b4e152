package api

import (
	"errors"
	"math/bits"
	"time"

	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
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
		if b := m.Balloon(); b != nil {
			answer.Granted -= min(b.Stats().ActualPages*memory.PageSize, c.Memory)
		}
		answer.Used, err = used(m.Memory())
		return err
	})
	if errors.Is(err, vmm.ErrNotStarted) || errors.Is(err, vmm.ErrEnded) {
		err = nil
	}
	return answer, err
}

// used is how many bytes of the host's memory a guest's memory takes up.
func used(m *memory.Guest) (uint64, error) {
	if m.FD() >= 0 {
		var s unix.Stat_t
		if err := unix.Fstat(m.FD(), &s); err != nil {
			return 0, err
		}
		return uint64(s.Blocks) * 512, nil // see stat(2)
	}
	present := make([]uint64, (m.Size()/memory.PageSize+63)/64)
	if err := m.Present(present); err != nil {
		return 0, err
	}
	n := 0
	for _, word := range present {
		n += bits.OnesCount64(word)
	}
	return uint64(n) * memory.PageSize, nil
}
