package rng

import (
	"fmt"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
)

// State is a saved device.
type State struct {
	Version uint32
	// Limit is how much the guest may still have at once.
	Limit limit.State
}

const stateVersion = 1

// Save returns the state of the device, which is stopped.
func (d *Device) Save() State { return State{Version: stateVersion, Limit: d.limiter.Save()} }

// Restore takes over a saved state. The device is stopped.
func (d *Device) Restore(s State) error {
	if err := devices.CheckVersion("rng", s.Version, stateVersion); err != nil {
		return err
	}
	if err := d.limiter.Restore(s.Limit); err != nil {
		return fmt.Errorf("rng: %w", err)
	}
	return nil
}
