package machine

import "github.com/godwit-vmm/godwit/devices/virtio/balloon"

// addBalloon adds the balloon if the configuration has one.
func (m *Machine) addBalloon() error {
	if m.cfg.Balloon == nil {
		return nil
	}
	c := *m.cfg.Balloon
	c.Mem = m.mem
	if c.Warn == nil {
		c.Warn = m.cfg.Warn
	}
	d, err := balloon.New(c)
	if err != nil {
		return err
	}
	if _, err := addVirtio(m, "balloon", d); err != nil {
		return err
	}
	m.balloon = d
	return nil
}

// Balloon is the balloon, nil if there is none.
func (m *Machine) Balloon() *balloon.Device { return m.balloon }
