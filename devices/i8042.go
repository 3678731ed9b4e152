package devices

import (
	"fmt"
	"sync"
)

// Offsets in the window at I8042Port.
const (
	i8042Data   = 0 // port 0x60
	i8042PortB  = 1 // port 0x61
	i8042Status = 4 // status on read, command on write: port 0x64
)

const (
	// i8042Absent is the status byte: all ones, as if there were no
	// controller, but for the bit that says that the input buffer is full.
	// Linux, should it look at all, reads data while the output buffer is
	// full, gives up after a few bytes and reports no controller; to reset
	// the machine it first waits for the input buffer to be empty, two
	// microseconds at a time, 65,536 times.
	i8042Absent    = 0xff &^ i8042InputFull
	i8042InputFull = 1 << 1
	// i8042Pulse to 0xff pulse those output lines low whose bit is clear.
	// Line 0 resets the processor; 0xfe pulses it alone.
	i8042Pulse     = 0xf0
	i8042ResetLine = 1 << 0
)

const (
	portBKept = 0x0f
	// portBRefresh toggles with memory refresh. Old delay loops count it.
	portBRefresh = 1 << 4
	// portBTimer2 is the output of timer 2. There is no timer 2, and Linux,
	// when it calibrates the TSC by it, waits for this bit without a limit.
	// Always set, it makes the measurement obviously wrong and over at once.
	portBTimer2 = 1 << 5
)

// I8042 is what is left of the keyboard controller, its reset command, and
// next to it system control port B. There is no keyboard.
type I8042 struct {
	power Power

	mu      sync.Mutex
	portB   byte
	refresh bool
}

// NewI8042 makes the device; only Reset is called.
func NewI8042(p Power) *I8042 { return &I8042{power: p} }

// Read serves the window at I8042Port.
func (d *I8042) Read(offset uint64, data []byte) {
	for i := range data {
		switch offset + uint64(i) {
		case i8042PortB:
			data[i] = d.readPortB()
		case i8042Status:
			data[i] = i8042Absent
		default:
			data[i] = 0xff
		}
	}
}

// Write serves the window at I8042Port.
func (d *I8042) Write(offset uint64, data []byte) {
	for i, b := range data {
		switch offset + uint64(i) {
		case i8042PortB:
			d.mu.Lock()
			d.portB = b & portBKept
			d.mu.Unlock()
		case i8042Status:
			if b >= i8042Pulse && b&i8042ResetLine == 0 {
				d.power.reset()
			}
		}
	}
}

// readPortB has bits 6 and 7 clear: set, they would tell the handler of an NMI
// that it was a memory or bus error.
func (d *I8042) readPortB() byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.portB | portBTimer2
	d.refresh = !d.refresh
	if d.refresh {
		b |= portBRefresh
	}
	return b
}

// I8042State is the saved device.
type I8042State struct {
	Version uint32
	PortB   uint8
}

const i8042Version = 1

// Save returns the state.
func (d *I8042) Save() I8042State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return I8042State{Version: i8042Version, PortB: d.portB}
}

// Restore takes over a saved state.
func (d *I8042) Restore(s I8042State) error {
	if err := CheckVersion("i8042", s.Version, i8042Version); err != nil {
		return err
	}
	if s.PortB&^portBKept != 0 {
		return fmt.Errorf("i8042 state: port B %#x has bits that the register does not keep", s.PortB)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.portB = s.PortB
	return nil
}
