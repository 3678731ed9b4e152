package net

import (
	"errors"
	"fmt"

	"github.com/godwit-vmm/godwit/devices/virtio/limit"
)

// State is a saved Device. Frames on the way are not part of it.
type State struct {
	Version uint32
	// MAC is the address that the guest's interface has.
	MAC MAC
	// Pairs is the number of queue pairs that the driver uses.
	Pairs int
	// Offloads are the feature bits of the guest's offloads that are on, if
	// OffloadsSet; else all that the driver accepted are on.
	OffloadsSet bool
	Offloads    uint64
	// Announce is set while the guest is asked to make itself known.
	Announce bool
	// Receive and Send are the limits.
	Receive, Send limit.State
}

const stateVersion = 1

// Save returns the state of the device, which is stopped.
func (d *Device) Save() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return State{
		Version: stateVersion, MAC: d.mac, Pairs: d.active,
		OffloadsSet: d.offloads.set, Offloads: d.offloads.features,
		Announce: d.announce,
		Receive:  d.pairs[0].receive.limiter.Save(), Send: d.pairs[0].send.limiter.Save(),
	}
}

// Restore puts the device, which is stopped, into a saved state. It has the MAC
// address of the saved one from then on; Announce makes the guest tell the
// network.
func (d *Device) Restore(s State) error {
	if err := d.check(s); err != nil {
		return fmt.Errorf("saved network device: %w", err)
	}
	if err := errors.Join(d.pairs[0].receive.limiter.Restore(s.Receive), d.pairs[0].send.limiter.Restore(s.Send)); err != nil {
		return fmt.Errorf("saved network device: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mac, d.active, d.announce = s.MAC, s.Pairs, s.Announce
	d.offloads = offloads{set: s.OffloadsSet, features: s.Offloads}
	return nil
}

func (d *Device) check(s State) error {
	if s.Version != stateVersion {
		return fmt.Errorf("version %d, this program knows %d", s.Version, stateVersion)
	}
	if err := s.MAC.check(); err != nil {
		return err
	}
	if s.Pairs < 1 || s.Pairs > len(d.pairs) {
		return fmt.Errorf("%d queue pairs in use, this device has %d: give it as many as it had", s.Pairs, len(d.pairs))
	}
	if s.Offloads&^(d.features&guestOffloads) != 0 {
		return fmt.Errorf("offloads %#x, this device can do %#x: use a back end of the same kind", s.Offloads, d.features&guestOffloads)
	}
	return nil
}
