package vmm

import (
	"fmt"
	"slices"

	"github.com/godwit-vmm/godwit/devices/virtio/limit"
	"github.com/godwit-vmm/godwit/machine"
)

// LimitDrive changes what the guest may ask of a drive, from now on: also after a
// reboot, and in what is saved of it.
func (v *VM) LimitDrive(id string, c limit.Change) error {
	return v.Use(func(m *machine.Machine) error {
		at := slices.IndexFunc(v.Config().Drives, func(d Drive) bool { return d.ID == id })
		if at < 0 || at >= len(m.Disks()) {
			return fmt.Errorf("there is no drive %q", id)
		}
		if err := m.Disks()[at].ChangeLimit(c); err != nil {
			return err
		}
		v.set(func() {
			d := &v.config.Drives[at]
			d.Limit = c.Of(d.Limit)
		})
		return nil
	})
}

// LimitNet is LimitDrive for what a network card receives and sends.
func (v *VM) LimitNet(id string, receive, send limit.Change) error {
	return v.Use(func(m *machine.Machine) error {
		at := slices.IndexFunc(v.Config().Nets, func(n Net) bool { return n.ID == id })
		if at < 0 || at >= len(m.Nets()) {
			return fmt.Errorf("there is no network interface %q", id)
		}
		if err := m.Nets()[at].ChangeLimits(receive, send); err != nil {
			return err
		}
		v.set(func() {
			n := &v.config.Nets[at]
			n.Receive, n.Send = receive.Of(n.Receive), send.Of(n.Send)
		})
		return nil
	})
}
