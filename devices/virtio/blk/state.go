package blk

import (
	"fmt"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
)

// State is a saved device. All but Writeback and Limit is there to be compared:
// the guest would be surprised by a disk that is another one.
type State struct {
	Version uint32
	// Capacity in bytes.
	Capacity uint64
	Serial   string
	ReadOnly bool
	Queues   int
	// BlockSize is the size of a logical block in bytes.
	BlockSize uint32
	// Writeback is the cache mode that the driver chose.
	Writeback bool
	Limit     limit.State
}

const stateVersion = 1

// Save returns the state of the device, which is stopped. It does not make
// writes durable: who copies the image elsewhere syncs it.
func (d *Device) Save() State {
	return State{
		Version: stateVersion, Capacity: d.Capacity(), Serial: d.config.Serial, ReadOnly: d.config.ReadOnly,
		Queues: d.config.Queues, BlockSize: d.image.block.logical, Writeback: d.writeback.Load(), Limit: d.limiter.Save(),
	}
}

// Restore takes over a saved state. The device is stopped, and its image has
// the contents that it had then.
func (d *Device) Restore(s State) error {
	if err := devices.CheckVersion("blk", s.Version, stateVersion); err != nil {
		return err
	}
	now := d.Save()
	for _, c := range []struct {
		what        string
		saved, here any
	}{
		{"size in bytes", s.Capacity, now.Capacity},
		{"serial number", s.Serial, now.Serial},
		{"read-only", s.ReadOnly, now.ReadOnly},
		{"number of queues", s.Queues, now.Queues},
		{"block size", s.BlockSize, now.BlockSize},
	} {
		if c.saved != c.here {
			return fmt.Errorf("disk %s: %s is %v, the saved machine had %v: give it the disk that it had", d.config.Path, c.what, c.here, c.saved)
		}
	}
	if err := d.limiter.Restore(s.Limit); err != nil {
		return fmt.Errorf("disk %s: %w", d.config.Path, err)
	}
	d.writeback.Store(s.Writeback)
	return nil
}
