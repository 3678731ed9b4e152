package devices

import (
	"fmt"
	"math/bits"
	"sync"
	"time"
)

// Registers in the window at PMPort (ACPI 6.5 §4.8.3).
const (
	pm1Status  = 0x00
	pm1Enable  = 0x02
	pm1Control = PM1Control - PMPort
	pmTimer    = PMTimer - PMPort
	gpe0       = GPE0 - PMPort
	gpeStatus  = gpe0
	gpeEnable  = gpe0 + GPE0Len/2

	pmRegisterLen = 2
	pmTimerLen    = 4
)

const (
	// pm1PowerButton is the only PM1 event that happens. The PM timer's carry
	// is left out: operating systems read the timer more often than it wraps,
	// and a status bit that never sets is what they know from the many
	// machines where the carry is broken.
	pm1PowerButton = 1 << 8
	// pm1Enables are the enable bits of all fixed events, timer, global lock,
	// power and sleep button and RTC. ACPICA reads back what it enables, and
	// reports an error when the bit is not there.
	pm1Enables = 0x0721

	// pmSCIEnabled always reads as set: the FADT offers no SMI command to
	// leave ACPI mode with, and Linux takes the bit as proof of being in it.
	pmSCIEnabled   = 1 << 0
	pmSleepType    = 7 << pmSleepShift
	pmSleepShift   = 10
	pmSleepEnable  = 1 << 13 // write only
	pmControlKept  = pmBusMaster | pmSleepType
	pmBusMaster    = 1 << 1
	gpeEvents      = 8 * GPE0Len / 2
	pmTimerHz      = 3579545
	nanosPerSecond = uint64(time.Second)
)

// PMConfig says how the power management block is wired.
type PMConfig struct {
	// SCI is the system control interrupt, a level triggered line.
	SCI Line
	// Power.Off is called when the guest enters the soft-off state.
	Power Power
	// Clock is a monotonic clock for the PM timer, from any origin. Nil
	// means the host's, from now.
	Clock func() time.Duration
}

// PM is the fixed ACPI hardware: PM1a event and control registers, the 32-bit
// PM timer, and a block of 16 general-purpose events. There is no power to
// manage: all it does is press the power button, and switch off.
type PM struct {
	sci   Line
	power Power
	clock func() time.Duration

	mu        sync.Mutex
	status    uint16 // PM1 status
	enable    uint16 // PM1 enable
	control   uint16 // PM1 control, only the bits that are kept
	gpeStatus uint16
	gpeEnable uint16
	// ticks is what the PM timer showed when the clock showed since.
	ticks uint32
	since time.Duration
}

// NewPM makes the block in its reset state.
func NewPM(c PMConfig) *PM {
	clock := c.Clock
	if clock == nil {
		start := time.Now()
		clock = func() time.Duration { return time.Since(start) }
	}
	return &PM{sci: c.SCI, power: c.Power, clock: clock, since: clock()}
}

// PressPowerButton asks the guest to shut down. A guest that has not enabled
// the button finds it pressed when it does.
func (p *PM) PressPowerButton() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status |= pm1PowerButton
	p.update()
}

// RaiseGPE raises general-purpose event n of 0 to 15, whose meaning is in the
// DSDT's \_GPE scope.
func (p *PM) RaiseGPE(n int) error {
	if n < 0 || n >= gpeEvents {
		return fmt.Errorf("general-purpose event %d: there are events 0 to %d", n, gpeEvents-1)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gpeStatus |= 1 << n
	p.update()
	return nil
}

// Read serves the window at PMPort.
func (p *PM) Read(offset uint64, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// One sample for the whole access, or a carry could fall between bytes.
	timer := p.timer()
	for i := range data {
		data[i] = p.readByte(offset+uint64(i), timer)
	}
}

func (p *PM) readByte(offset uint64, timer uint32) byte {
	if at := offset - pmTimer; at < pmTimerLen {
		return byte(timer >> (8 * at))
	}
	if v, shift := p.register(offset); v != nil {
		word := *v
		if v == &p.control {
			word |= pmSCIEnabled
		}
		return byte(word >> shift)
	}
	return 0
}

// register finds the 16-bit register that holds the byte at offset, and the
// byte's place in it.
func (p *PM) register(offset uint64) (v *uint16, shift uint) {
	switch offset &^ (pmRegisterLen - 1) {
	case pm1Status:
		v = &p.status
	case pm1Enable:
		v = &p.enable
	case pm1Control:
		v = &p.control
	case gpeStatus:
		v = &p.gpeStatus
	case gpeEnable:
		v = &p.gpeEnable
	}
	return v, 8 * uint(offset%pmRegisterLen)
}

// Write serves the window at PMPort.
func (p *PM) Write(offset uint64, data []byte) {
	if p.write(offset, data) {
		p.power.off()
	}
}

// write updates the registers and tells whether the guest switched off.
func (p *PM) write(offset uint64, data []byte) (off bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, b := range data {
		v, shift := p.register(offset + uint64(i))
		written := uint16(b) << shift
		mask := uint16(0xff) << shift
		switch v {
		case nil:
		case &p.status, &p.gpeStatus:
			*v &^= written // write one to clear
		case &p.enable:
			*v = *v&^mask | written&pm1Enables
		case &p.gpeEnable:
			*v = *v&^mask | written
		case &p.control:
			*v = *v&^mask | written&pmControlKept
			off = off || written&pmSleepEnable != 0 && *v>>pmSleepShift&7 == SleepTypeOff
		}
	}
	p.update()
	return off
}

// update drives the system control interrupt.
func (p *PM) update() {
	p.sci.Set(p.status&p.enable != 0 || p.gpeStatus&p.gpeEnable != 0)
}

func (p *PM) timer() uint32 {
	// 128 bits in between: nanoseconds times ticks leave 64 after an hour.
	hi, lo := bits.Mul64(uint64(max(0, p.clock()-p.since)), pmTimerHz)
	elapsed, _ := bits.Div64(hi, lo, nanosPerSecond)
	return p.ticks + uint32(elapsed)
}

// PMState is the saved power management block.
type PMState struct {
	Version uint32

	Status, Enable, Control uint16 // PM1
	GPEStatus, GPEEnable    uint16
	Timer                   uint32
}

const pmVersion = 1

// Save returns the state.
func (p *PM) Save() PMState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PMState{
		Version:   pmVersion,
		Status:    p.status,
		Enable:    p.enable,
		Control:   p.control,
		GPEStatus: p.gpeStatus,
		GPEEnable: p.gpeEnable,
		Timer:     p.timer(),
	}
}

// Restore takes over a saved state. The PM timer goes on from where it was:
// to the guest, the time in between did not pass.
func (p *PM) Restore(s PMState) error {
	if err := CheckVersion("power management", s.Version, pmVersion); err != nil {
		return err
	}
	if s.Status&^pm1PowerButton != 0 || s.Enable&^pm1Enables != 0 || s.Control&^pmControlKept != 0 {
		return fmt.Errorf("power management state: PM1 status %#x, enable %#x or control %#x has bits that the register does not keep",
			s.Status, s.Enable, s.Control)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status, p.enable, p.control = s.Status, s.Enable, s.Control
	p.gpeStatus, p.gpeEnable = s.GPEStatus, s.GPEEnable
	p.ticks, p.since = s.Timer, p.clock()
	p.update()
	return nil
}
