package machine

import "github.com/godwit-vmm/godwit/devices/virtio/console"

// addHVC adds the virtio console if the configuration has one.
func (m *Machine) addHVC() error {
	if m.cfg.HVC == nil {
		return nil
	}
	c := *m.cfg.HVC
	if c.Warn == nil {
		c.Warn = m.cfg.Warn
	}
	d, err := console.New(c)
	if err != nil {
		return err
	}
	if _, err := addVirtio(m, "console", d); err != nil {
		return err
	}
	m.hvc = d
	return nil
}

// HVC is the virtio console (hvc0), nil if there is none.
func (m *Machine) HVC() *console.Device { return m.hvc }
