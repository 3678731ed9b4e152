package balloon

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"time"
)

// stateVersion is the version of State that Save writes and Restore reads.
const stateVersion = 1

// State is a saved balloon. What the guest has said about its memory is not part
// of it: it says so again.
type State struct {
	Version uint32
	// NumPages is the target, and Actual what the driver says that it has
	// given up, both in pages; Poison is what free pages are filled with.
	NumPages, Actual, Poison uint32
	// StatsInterval is how often the guest is asked about its memory.
	StatsInterval time.Duration
	// Ballooned has a bit for each page that is given up: bit i%8 of byte
	// i/8, numbered as in the dirty bitmap.
	Ballooned []byte
	// Reported is Stats.Reported.
	Reported uint64
}

// Save returns the state of the stopped device.
func (d *Device) Save() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := State{
		Version: stateVersion, NumPages: d.field(configNumPages), Actual: d.field(configActual), Poison: d.field(configPoison),
		StatsInterval: d.interval, Reported: d.reported,
	}
	for _, word := range d.given.bits {
		s.Ballooned = binary.LittleEndian.AppendUint64(s.Ballooned, word)
	}
	return s
}

// Restore puts the stopped device into a saved state.
func (d *Device) Restore(s State) error {
	pages := d.config.Mem.Size() / PageSize
	switch want := len(d.given.bits) * 8; {
	case s.Version != stateVersion:
		return fmt.Errorf("state of the balloon has version %d, want %d", s.Version, stateVersion)
	case uint64(s.NumPages) > pages:
		return fmt.Errorf("state of the balloon asks for %d pages of %d", s.NumPages, pages)
	case s.StatsInterval != 0 && s.StatsInterval < MinStatsInterval:
		return fmt.Errorf("state of the balloon asks for statistics every %v, want at least %v", s.StatsInterval, MinStatsInterval)
	case len(s.Ballooned) != want:
		return fmt.Errorf("state of the balloon has %d bytes of pages, want %d for this guest's memory", len(s.Ballooned), want)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	given := newPageSet(d.config.Mem)
	for i := range given.bits {
		given.bits[i] = binary.LittleEndian.Uint64(s.Ballooned[8*i:])
		given.count += uint64(bits.OnesCount64(given.bits[i]))
	}
	if rest := pages % 64; rest != 0 && given.bits[len(given.bits)-1]>>rest != 0 {
		return fmt.Errorf("state of the balloon has pages behind the end of the guest's memory")
	}
	d.given, d.interval, d.reported = given, s.StatsInterval, s.Reported
	d.setField(configNumPages, s.NumPages)
	d.setField(configActual, s.Actual)
	d.setField(configPoison, s.Poison)
	return nil
}
