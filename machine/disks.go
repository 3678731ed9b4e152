package machine

import (
	"fmt"

	"github.com/godwit-vmm/godwit/devices/virtio/blk"
)

// addDisks adds the disks in the order of the configuration, which is that of
// their names in the guest (vda, vdb and so on).
func (m *Machine) addDisks() error {
	for i, c := range m.cfg.Disks {
		if c.Warn == nil {
			c.Warn = m.cfg.Warn
		}
		c.Inactive = m.cfg.Incoming
		d, err := blk.New(c)
		if err != nil {
			return fmt.Errorf("disk %d: %w", i, err)
		}
		if _, err := addVirtio(m, fmt.Sprintf("disk %d", i), d); err != nil {
			return err
		}
		m.disks = append(m.disks, d)
	}
	return nil
}

// Disks are the block devices in the order of Config.Disks.
func (m *Machine) Disks() []*blk.Device { return m.disks }
