package machine

import "errors"

// Load puts a machine that was built with Config.Incoming, and whose memory has come,
// into the state that the machine had where it comes from. After an error it is of no
// use any more.
//
// Memory that was passed is as the other process has it then, without what an earlier
// Load has left there.
func (m *Machine) Load(s *State) error {
	if err := m.mem.Renew(); err != nil {
		return err
	}
	return m.restore(s)
}

// ActivateDisks takes the locks of the disks of a machine that does not run: one that
// was built with Config.Incoming, or whose disks were deactivated.
func (m *Machine) ActivateDisks() error {
	for i, d := range m.disks {
		if err := d.Activate(); err != nil {
			// Whoever has them instead must not find some of them locked.
			for _, locked := range m.disks[:i] {
				err = errors.Join(err, locked.Deactivate())
			}
			return err
		}
	}
	return nil
}

// DeactivateDisks makes durable what a paused guest has written to its disks, and gives
// their locks up. The guest must not be resumed before ActivateDisks.
func (m *Machine) DeactivateDisks() error {
	var errs []error
	for _, d := range m.disks {
		errs = append(errs, d.Deactivate())
	}
	return errors.Join(errs...)
}
