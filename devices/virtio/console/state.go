package console

import (
	"encoding/binary"
	"fmt"
)

// stateVersion is the version of State that Save writes and Restore reads.
const stateVersion = 1

// State is a saved console. Output that the guest was told is taken is not part
// of it: it goes to the writer of the console that took it.
type State struct {
	Version uint32
	// Cols and Rows are the size of the terminal.
	Cols, Rows uint16
	// Input is what the guest has not taken yet.
	Input []byte
	// Sent is how much of the first request in the transmit queue has been
	// taken, in bytes.
	Sent uint32
}

// Save returns the state of the stopped device.
func (d *Device) Save() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return State{
		Version: stateVersion,
		Cols:    binary.LittleEndian.Uint16(d.space[configCols:]),
		Rows:    binary.LittleEndian.Uint16(d.space[configRows:]),
		Input:   append([]byte(nil), d.input...), Sent: d.sent,
	}
}

// Restore puts the stopped device into a saved state.
func (d *Device) Restore(s State) error {
	switch {
	case s.Version != stateVersion:
		return fmt.Errorf("state of the console has version %d, want %d", s.Version, stateVersion)
	case len(s.Input) > inputLimit:
		return fmt.Errorf("state of the console has %d bytes of input, at most %d can be", len(s.Input), inputLimit)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setSize(s.Cols, s.Rows)
	d.input = append(d.input[:0], s.Input...)
	d.sent = s.Sent
	signal(d.room)
	return nil
}
