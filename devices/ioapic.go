package devices

import (
	"encoding/binary"
	"fmt"
	"sync"
)

// IOAPICPins is the number of pins, which are global system interrupts 0 to 23.
const IOAPICPins = 24

// Registers of the I/O APIC (Intel 82093AA §3.0; the EOI register came with
// version 0x20). All but these three are reached by writing their index to
// the first and accessing the second.
const (
	ioapicSelect = 0x00
	ioapicWindow = 0x10
	ioapicEOI    = 0x40

	ioapicID          = 0x00
	ioapicVersion     = 0x01
	ioapicArbitration = 0x02
	ioapicRedirection = 0x10 // two for each pin, low half first

	ioapicIDKept = 0x0f00_0000
	// Version 0x20 has the EOI register. Linux writes to it when a level
	// triggered interrupt reached the processor as an edge, and otherwise
	// falls back on flipping the trigger mode.
	ioapicVersionValue = 0x20 | (IOAPICPins-1)<<16
)

// Fields of a redirection table entry.
const (
	rteVector       = 0xff
	rteDelivery     = 7 << 8
	rteLogical      = 1 << 11 // destination mode
	rteRemoteIRR    = 1 << 14 // read only: accepted, and not yet EOI'd
	rteLevel        = 1 << 15 // trigger mode
	rteMasked       = 1 << 16
	rteDestShift    = 56 // destination, 8 bits
	rteExtDestShift = 49 // bits 8 to 14 of the destination, by KVM's extension

	// rteWritable leaves out the delivery status, which is always idle, and
	// remote IRR. Polarity (bit 13) is kept and otherwise ignored: a Line
	// says asserted, not high or low, and a guest that has the polarity
	// wrong would only hurt itself.
	rteWritable = 0xff | rteDelivery | rteLogical | 1<<13 | rteLevel | rteMasked | 0xffff<<48

	deliverFixed  = 0 << 8
	deliverLowest = 1 << 8
	deliverNMI    = 4 << 8

	// lowestVector is the first that a local APIC accepts (SDM vol. 3 §11.5.2).
	lowestVector = 16
)

// Layout of an MSI (SDM volume 3 §11.11).
const (
	msiBase         = 0xfee0_0000
	msiDestShift    = 12
	msiExtDestShift = 5
	msiLogical      = 1 << 2
	msiAssert       = 1 << 14
	msiLevel        = 1 << 15
)

// IOAPICConfig says where interrupts go. Both functions are called with the
// I/O APIC's lock held: they must not come back into it.
type IOAPICConfig struct {
	// Send delivers an interrupt.
	Send func(MSI) error
	// SetRoutes tells the local APICs' owner about the level triggered
	// pins, so that it calls EOI for their vectors (KVM sets its split
	// irqchip's exit bitmap from GSI routes 0 to 23). Bit n of used says
	// that routes[n] is valid. It replaces the routes set before, and is
	// called only when they change.
	SetRoutes func(routes [IOAPICPins]MSI, used uint32) error
}

// IOAPIC is the I/O APIC in front of local APICs that KVM has: the user space
// part of the split irqchip (KVM API, KVM_CAP_SPLIT_IRQCHIP).
type IOAPIC struct {
	config IOAPICConfig
	pins   [IOAPICPins]ioapicPin

	mu       sync.Mutex
	id       uint32
	index    byte
	rte      [IOAPICPins]uint64
	asserted uint32 // bit per pin: its line
	routes   [IOAPICPins]MSI
	used     uint32 // bit per valid route
	failures uint64
	lastErr  error
}

// ioapicPin is the Line into one pin.
type ioapicPin struct {
	ioapic *IOAPIC
	n      int
}

// Set drives the pin.
func (p *ioapicPin) Set(asserted bool) { p.ioapic.set(p.n, asserted) }

// NewIOAPIC makes an I/O APIC with all pins masked.
func NewIOAPIC(c IOAPICConfig) *IOAPIC {
	a := &IOAPIC{config: c}
	for n := range a.pins {
		a.pins[n] = ioapicPin{a, n}
		a.rte[n] = rteMasked
	}
	return a
}

// Pin returns the Line into pin n, of 0 to IOAPICPins-1.
func (a *IOAPIC) Pin(n int) Line { return &a.pins[n] }

// Failures counts the interrupts and routes that Send and SetRoutes refused,
// and returns the last error.
func (a *IOAPIC) Failures() (uint64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failures, a.lastErr
}

func (a *IOAPIC) set(n int, asserted bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	bit := uint32(1) << n
	if a.asserted&bit != 0 == asserted {
		return
	}
	a.asserted ^= bit
	if !asserted {
		return
	}
	if isLevel(a.rte[n]) {
		a.service(n)
	} else if a.rte[n]&rteMasked == 0 {
		// An edge on a masked pin is lost, as in hardware: Linux masks
		// edge interrupts only in ways that reckon with that.
		a.send(a.rte[n])
	}
}

// service sends the interrupt of a level triggered pin, if it is due.
func (a *IOAPIC) service(n int) {
	e := a.rte[n]
	if a.asserted>>n&1 == 0 || !isLevel(e) || e&(rteMasked|rteRemoteIRR) != 0 || !deliverable(e) {
		return
	}
	a.rte[n] |= rteRemoteIRR
	a.send(e)
}

func (a *IOAPIC) send(e uint64) {
	if deliverable(e) {
		a.note(a.config.Send(message(e)))
	}
}

func (a *IOAPIC) note(err error) {
	if err != nil {
		a.failures++
		a.lastErr = err
	}
}

// EOI ends the interrupt of a vector: the guest wrote to the EOI register of
// a local APIC or to this one's. Pins that are still asserted send again.
func (a *IOAPIC) EOI(vector uint8) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.eoi(vector)
}

func (a *IOAPIC) eoi(vector uint8) {
	for n, e := range a.rte {
		if e&rteRemoteIRR != 0 && uint8(e&rteVector) == vector {
			a.rte[n] &^= rteRemoteIRR
			a.service(n)
		}
	}
}

// isLevel tells whether the pin is level triggered. NMIs are edge triggered
// whatever the entry says.
func isLevel(e uint64) bool { return e&rteLevel != 0 && e&rteDelivery != deliverNMI }

// deliverable tells whether the entry describes an interrupt that can be sent.
// SMI and INIT have no business here, and ExtINT needs an 8259, which there is
// not; vectors below 16 are refused by local APICs.
func deliverable(e uint64) bool {
	switch e & rteDelivery {
	case deliverFixed, deliverLowest:
		return e&rteVector >= lowestVector
	case deliverNMI:
		return true
	}
	return false
}

// message turns an entry into the MSI that an I/O APIC in front of a memory
// bus would write. The destination's extension goes where KVM's MSI format
// has it.
func message(e uint64) MSI {
	m := MSI{
		Address: msiBase | e>>rteDestShift<<msiDestShift | e>>rteExtDestShift&0x7f<<msiExtDestShift,
		Data:    uint32(e & (rteVector | rteDelivery)),
	}
	if e&rteLogical != 0 {
		m.Address |= msiLogical
	}
	if isLevel(e) {
		m.Data |= msiLevel | msiAssert
	}
	return m
}

// Read serves the register window.
func (a *IOAPIC) Read(offset uint64, data []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var v uint32
	switch offset {
	case ioapicSelect:
		v = uint32(a.index)
	case ioapicWindow:
		v = a.readIndexed()
	}
	for i := range data {
		data[i] = byte(uint64(v) >> (8 * i))
	}
}

func (a *IOAPIC) readIndexed() uint32 {
	switch a.index {
	case ioapicID, ioapicArbitration:
		return a.id
	case ioapicVersion:
		return ioapicVersionValue
	}
	if n, shift, ok := a.entry(); ok {
		return uint32(a.rte[n] >> shift)
	}
	return 0
}

// entry says which half of which redirection entry the index selects.
func (a *IOAPIC) entry() (n int, shift uint, ok bool) {
	at := int(a.index) - ioapicRedirection
	if at < 0 || at >= 2*IOAPICPins {
		return 0, 0, false
	}
	return at / 2, uint(at) % 2 * 32, true
}

// Write serves the register window. The registers take aligned 32-bit writes;
// of a wider one the low half counts, a narrower one is zero-extended.
func (a *IOAPIC) Write(offset uint64, data []byte) {
	var buf [8]byte
	copy(buf[:], data)
	v := binary.LittleEndian.Uint32(buf[:])

	a.mu.Lock()
	defer a.mu.Unlock()
	switch offset {
	case ioapicSelect:
		a.index = byte(v)
	case ioapicWindow:
		a.writeIndexed(v)
	case ioapicEOI:
		a.eoi(uint8(v))
	}
}

func (a *IOAPIC) writeIndexed(v uint32) {
	if a.index == ioapicID {
		a.id = v & ioapicIDKept
		return
	}
	n, shift, ok := a.entry()
	if !ok {
		return
	}
	writable := uint64(rteWritable) & (0xffff_ffff << shift)
	e := a.rte[n]&^writable | uint64(v)<<shift&writable
	if !isLevel(e) {
		// Linux clears a remote IRR that got stuck by making the pin
		// edge triggered for a moment.
		e &^= rteRemoteIRR
	}
	a.rte[n] = e
	// Routes first: the interrupt that is sent next may be EOI'd at once.
	a.updateRoutes()
	a.service(n)
}

// updateRoutes passes on the routes of the level triggered pins, if they have
// changed. A masked pin keeps its route until its last interrupt is EOI'd:
// Linux masks a pin in the handler, then writes EOI, then moves the interrupt.
// After that the route stays until the next change, which costs nothing but an
// exit for an EOI of its vector.
func (a *IOAPIC) updateRoutes() {
	var routes [IOAPICPins]MSI
	var used uint32
	for n, e := range a.rte {
		if isLevel(e) && deliverable(e) && (e&rteMasked == 0 || e&rteRemoteIRR != 0) {
			routes[n] = message(e)
			used |= 1 << n
		}
	}
	if used == a.used && routes == a.routes {
		return
	}
	a.routes, a.used = routes, used
	a.note(a.config.SetRoutes(routes, used))
}

// IOAPICState is the saved I/O APIC.
type IOAPICState struct {
	Version uint32

	ID          uint32
	Select      uint8
	Redirection [IOAPICPins]uint64
	Asserted    uint32 // bit per pin: its line
}

const ioapicStateVersion = 1

// Save returns the state.
func (a *IOAPIC) Save() IOAPICState {
	a.mu.Lock()
	defer a.mu.Unlock()
	return IOAPICState{
		Version:     ioapicStateVersion,
		ID:          a.id,
		Select:      a.index,
		Redirection: a.rte,
		Asserted:    a.asserted,
	}
}

// Restore takes over a saved state and sets the routes. Restore the local
// APICs before, and the devices behind the pins after.
func (a *IOAPIC) Restore(s IOAPICState) error {
	if err := CheckVersion("I/O APIC", s.Version, ioapicStateVersion); err != nil {
		return err
	}
	if s.ID&^ioapicIDKept != 0 {
		return fmt.Errorf("I/O APIC state: ID register %#x has bits that it does not keep", s.ID)
	}
	if s.Asserted>>IOAPICPins != 0 {
		return fmt.Errorf("I/O APIC state: asserted pins %#x, there are %d", s.Asserted, IOAPICPins)
	}
	for n, e := range s.Redirection {
		if e&^(rteWritable|rteRemoteIRR) != 0 || e&rteRemoteIRR != 0 && !isLevel(e) {
			return fmt.Errorf("I/O APIC state: redirection entry %d is %#x, which the register cannot hold", n, e)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.id, a.index, a.rte, a.asserted = s.ID, s.Select, s.Redirection, s.Asserted
	failures := a.failures
	a.updateRoutes()
	for n := range a.rte {
		a.service(n)
	}
	if a.failures != failures {
		return fmt.Errorf("I/O APIC state: restore pending interrupts and routes: %w", a.lastErr)
	}
	return nil
}
