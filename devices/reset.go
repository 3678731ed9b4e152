package devices

import (
	"fmt"
	"sync/atomic"
)

// Bits of the reset control register.
const (
	resetHard = 1 << 1 // the kind of reset that resetCPU starts
	resetCPU  = 1 << 2 // starts the reset when it rises
	resetFull = 1 << 3 // with a power cycle
)

// ResetRegister is the reset control register of PC chipsets, one byte wide.
// Both styles of use end in a reset: the single write of ResetValue that ACPI
// describes (6.5 §4.8.3.6), and the older way of choosing the kind first and
// setting resetCPU in a second write.
type ResetRegister struct {
	power Power
	kind  atomic.Uint32
}

// NewResetRegister makes the register; only Reset is called.
func NewResetRegister(p Power) *ResetRegister { return &ResetRegister{power: p} }

// Read returns the kind of reset chosen. resetCPU always reads as 0, because
// the machine does not survive its being set.
func (r *ResetRegister) Read(_ uint64, data []byte) {
	for i := range data {
		data[i] = 0
	}
	data[0] = byte(r.kind.Load())
}

// Write chooses the kind of reset, and resets if resetCPU is set.
func (r *ResetRegister) Write(_ uint64, data []byte) {
	r.kind.Store(uint32(data[0] & (resetHard | resetFull)))
	if data[0]&resetCPU != 0 {
		r.power.reset()
	}
}

// ResetRegisterState is the saved register.
type ResetRegisterState struct {
	Version uint32
	Kind    uint8
}

const resetRegisterVersion = 1

// Save returns the state.
func (r *ResetRegister) Save() ResetRegisterState {
	return ResetRegisterState{Version: resetRegisterVersion, Kind: uint8(r.kind.Load())}
}

// Restore takes over a saved state.
func (r *ResetRegister) Restore(s ResetRegisterState) error {
	if err := CheckVersion("reset register", s.Version, resetRegisterVersion); err != nil {
		return err
	}
	if s.Kind&^(resetHard|resetFull) != 0 {
		return fmt.Errorf("reset register state: value %#x has bits that the register does not keep", s.Kind)
	}
	r.kind.Store(uint32(s.Kind))
	return nil
}
