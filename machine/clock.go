package machine

import (
	"errors"
	"time"

	"github.com/godwit-vmm/godwit/kvm"
)

// saveClock reads kvmclock and what the host's wall clock shows meanwhile, which a KVM
// without KVM_CLOCK_REALTIME does not tell.
func (m *Machine) saveClock() (kvm.ClockData, error) {
	c, err := m.vm.GetClock()
	if c.Flags&kvm.KVM_CLOCK_REALTIME == 0 {
		c.Realtime = uint64(time.Now().UnixNano())
	}
	return c, err
}

// AdvanceClock has the guest's clock moved on, when s is restored, by the time that has
// passed on the host's wall clock since the save, as if the guest had run all that time:
// kvmclock, and the TSC with it, since Linux takes either and compares them. Its timers
// that are due by then fire. Without it the clock goes on from where it was.
func (s *State) AdvanceClock() { s.advance = true }

// moveClock does what AdvanceClock has asked for, at the given time of the host.
func (s *State) moveClock(now time.Time) error {
	if !s.advance {
		return nil
	}
	saved := int64(s.Clock.Realtime)
	if saved <= 0 {
		return errors.New("the saved state does not say at what time of its host it was saved: restore it without moving its clock on (clock_realtime)")
	}
	// A host whose clock is behind does not set the guest's back.
	passed := now.UnixNano() - saved
	if passed <= 0 {
		return nil
	}
	s.Clock.Clock += uint64(passed)
	s.Clock.Realtime = uint64(now.UnixNano())
	for _, c := range s.CPUs {
		c.AdvanceTSC(time.Duration(passed))
	}
	return nil
}

// setClock sets kvmclock to what is saved. KVM adds what has passed since moveClock,
// if it can.
func (m *Machine) setClock(s *State) error {
	c := kvm.ClockData{Clock: s.Clock.Clock}
	if s.advance {
		// The flags that SET_CLOCK takes (KVM API §4.30).
		flags, err := m.vm.CheckExtension(kvm.KVM_CAP_ADJUST_CLOCK)
		if err != nil {
			return err
		}
		if flags&kvm.KVM_CLOCK_REALTIME != 0 {
			c.Flags, c.Realtime = kvm.KVM_CLOCK_REALTIME, s.Clock.Realtime
		}
	}
	return m.vm.SetClock(c)
}
