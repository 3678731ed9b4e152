package pci

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/godwit-vmm/godwit/devices"
)

// BusState is the saved bus with all its functions, in the order of slots.
type BusState struct {
	Version   uint32
	Address   uint32 // of the configuration ports
	Functions []FunctionState
}

// FunctionState is a saved function. The state of the device behind it is the
// device's own.
type FunctionState struct {
	Version uint32
	Slot    int
	// Config is the configuration space without the zeros at its end.
	Config []byte
	// MSIX is nil for a function without MSI-X.
	MSIX *MSIXState
}

// MSIXState is the saved MSI-X table. What the control word says is in the
// function's configuration space.
type MSIXState struct {
	Version uint32
	Vectors []VectorState
}

// VectorState is a saved MSI-X vector.
type VectorState struct {
	Address uint64
	Data    uint32
	Masked  bool
	Pending bool
}

const (
	busVersion      = 1
	functionVersion = 1
	msixVersion     = 1
)

// Save returns the state of the bus and all functions.
func (b *Bus) Save() BusState {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := BusState{Version: busVersion, Address: b.address}
	for slot, f := range b.functions {
		if f != nil {
			s.Functions = append(s.Functions, f.save(slot))
		}
	}
	return s
}

// Restore takes over a saved state on a bus that has the same functions in the
// same slots, and maps their BARs. An error leaves the bus unchanged if it is
// about the state itself.
func (b *Bus) Restore(s BusState) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.validate(&s); err != nil {
		return err
	}
	b.address = s.Address
	for i := range s.Functions {
		st := &s.Functions[i]
		b.functions[st.Slot].restore(st)
	}
	b.remap()
	return nil
}

func (b *Bus) validate(s *BusState) error {
	if err := devices.CheckVersion("PCI bus", s.Version, busVersion); err != nil {
		return err
	}
	if s.Address&^addressKept != 0 {
		return fmt.Errorf("PCI bus state: configuration address %#x has bits that the register does not keep", s.Address)
	}
	var seen [Slots]bool
	for i := range s.Functions {
		st := &s.Functions[i]
		if st.Slot < 0 || st.Slot >= Slots || b.functions[st.Slot] == nil {
			return fmt.Errorf("PCI bus state: a function in slot %d, where this machine has none", st.Slot)
		}
		if seen[st.Slot] {
			return fmt.Errorf("PCI bus state: two functions in slot %d", st.Slot)
		}
		seen[st.Slot] = true
		if err := b.functions[st.Slot].validate(st); err != nil {
			return fmt.Errorf("PCI slot %d: %w", st.Slot, err)
		}
	}
	for slot, f := range b.functions {
		if f != nil && !seen[slot] {
			return fmt.Errorf("PCI bus state: nothing for %s in slot %d", f.name, slot)
		}
	}
	return nil
}

func (f *Function) save(slot int) FunctionState {
	s := FunctionState{
		Version: functionVersion,
		Slot:    slot,
		Config:  bytes.Clone(bytes.TrimRight(f.config[:], "\x00")),
	}
	if f.msix != nil {
		s.MSIX = f.msix.save()
	}
	return s
}

func (f *Function) validate(s *FunctionState) error {
	if err := devices.CheckVersion(f.name, s.Version, functionVersion); err != nil {
		return err
	}
	if len(s.Config) > ConfigSize {
		return fmt.Errorf("state of %s: %d bytes of configuration space, there are %d", f.name, len(s.Config), ConfigSize)
	}
	var config [ConfigSize]byte
	copy(config[:], s.Config)
	for reg, b := range config {
		if (b^f.config[reg])&^f.writable[reg] != 0 {
			return fmt.Errorf("state of %s: configuration byte %#x is %#x, of this device it is %#x: it is another device, or has other options",
				f.name, reg, b, f.config[reg])
		}
	}
	switch {
	case (s.MSIX == nil) != (f.msix == nil):
		return fmt.Errorf("state of %s: MSI-X is in the state or in the device, not in both", f.name)
	case s.MSIX == nil:
		return nil
	}
	return f.msix.validate(s.MSIX)
}

func (f *Function) restore(s *FunctionState) {
	clear(f.config[:])
	copy(f.config[:], s.Config)
	if s.MSIX == nil {
		return
	}
	f.msix.restore(s.MSIX)
	for i := range f.caps {
		if c := &f.caps[i]; f.config[c.offset-capHeader] == CapabilityMSIX {
			f.msix.control(binary.LittleEndian.Uint16(f.config[c.offset:]))
		}
	}
}

func (m *MSIX) save() *MSIXState {
	s := &MSIXState{Version: msixVersion, Vectors: make([]VectorState, len(m.vectors))}
	for i := range m.vectors {
		v := &m.vectors[i]
		v.mu.Lock()
		s.Vectors[i] = VectorState{v.address, v.data, v.masked, v.pending}
		v.mu.Unlock()
	}
	return s
}

func (m *MSIX) validate(s *MSIXState) error {
	if err := devices.CheckVersion("MSI-X", s.Version, msixVersion); err != nil {
		return err
	}
	if len(s.Vectors) != len(m.vectors) {
		return fmt.Errorf("MSI-X state: %d vectors, this device has %d", len(s.Vectors), len(m.vectors))
	}
	for i, v := range s.Vectors {
		if v.Address&3 != 0 {
			return fmt.Errorf("MSI-X state: address %#x of vector %d is not aligned", v.Address, i)
		}
	}
	return nil
}

// restore takes over the vectors with MSI-X off; control turns it on.
func (m *MSIX) restore(s *MSIXState) {
	m.control(0)
	for i, st := range s.Vectors {
		v := &m.vectors[i]
		v.mu.Lock()
		v.address, v.data, v.masked, v.pending = st.Address, st.Data, st.Masked, st.Pending
		v.mu.Unlock()
	}
}
