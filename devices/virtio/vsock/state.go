package vsock

import "fmt"

// stateVersion is the version of State.
const stateVersion = 1

// State is what outlives the process. Connections do not.
type State struct {
	Version uint32
	// CID is the guest's.
	CID uint64
}

// Save returns the state. The device is stopped.
func (d *Device) Save() State { return State{Version: stateVersion, CID: d.cid} }

// Restore takes over the state of another device. The device is stopped. When it
// starts, the guest learns that all of its connections are gone.
func (d *Device) Restore(s State) error {
	if s.Version != stateVersion {
		return fmt.Errorf("vsock: state of version %d, this program has %d", s.Version, stateVersion)
	}
	if s.CID < MinCID || s.CID > MaxCID {
		return fmt.Errorf("vsock: state with guest CID %d, want %d to %d", s.CID, MinCID, uint64(MaxCID))
	}
	d.closeAll()
	d.cid = s.CID
	d.reset = resetWanted
	return nil
}
