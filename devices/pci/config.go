package pci

import (
	"encoding/binary"

	"github.com/godwit-vmm/godwit/devices"
)

// ConfigPorts serves the ports of configuration mechanism #1 (§3.2.2.3.2), at
// devices.PCIConfigPort.
func (b *Bus) ConfigPorts() devices.Handler { return (*configPorts)(b) }

// ECAM serves the memory-mapped configuration space of bus 0, at
// memory.ECAMStart.
func (b *Bus) ECAM() devices.Handler { return (*ecam)(b) }

const (
	configAddress = 0 // 32-bit accesses only
	configReset   = 1 // the byte of the reset register
	configData    = 4 // to 7

	addressEnable = 1 << 31
	// addressKept are the enable bit, bus, device, function and register.
	addressKept = 0x80ff_fffc
)

type configPorts Bus

// Read serves the address and data registers. Narrow accesses to the address
// register are none of the mechanism's: they are for other devices in the
// same place, of which there is the reset register.
func (c *configPorts) Read(offset uint64, data []byte) {
	b := (*Bus)(c)
	switch {
	case offset >= configData:
		if slot, function, reg, ok := b.selected(offset); ok {
			b.read(slot, function, reg, data)
			return
		}
	case offset == configAddress && len(data) == 4:
		b.mu.Lock()
		defer b.mu.Unlock()
		binary.LittleEndian.PutUint32(data, b.address)
		return
	case offset == configReset && len(data) == 1 && b.config.Reset != nil:
		b.config.Reset.Read(0, data)
		return
	}
	for i := range data {
		data[i] = 0xff
	}
}

// Write serves the address and data registers.
func (c *configPorts) Write(offset uint64, data []byte) {
	b := (*Bus)(c)
	switch {
	case offset >= configData:
		if slot, function, reg, ok := b.selected(offset); ok {
			b.write(slot, function, reg, data)
		}
	case offset == configAddress && len(data) == 4:
		// Linux writes 1 to the top byte, as a byte, before it tests the
		// register: that must not, and does not, arrive here.
		b.mu.Lock()
		defer b.mu.Unlock()
		b.address = binary.LittleEndian.Uint32(data) & addressKept
	case offset == configReset && len(data) == 1 && b.config.Reset != nil:
		b.config.Reset.Write(0, data)
	}
}

// selected decodes the address register for an access to the data register.
func (b *Bus) selected(offset uint64) (slot, function, reg int, ok bool) {
	b.mu.Lock()
	a := b.address
	b.mu.Unlock()
	slot = int(a >> 11 & 0x1f)
	function = int(a >> 8 & 7)
	reg = int(a&0xfc) + int(offset-configData)
	onBus := a>>16&0xff == 0
	return slot, function, reg, a&addressEnable != 0 && onBus
}

type ecam Bus

// Read serves configuration space by address.
func (e *ecam) Read(offset uint64, data []byte) {
	(*Bus)(e).read(ecamAddress(offset, data))
}

// Write serves configuration space by address.
func (e *ecam) Write(offset uint64, data []byte) {
	(*Bus)(e).write(ecamAddress(offset, data))
}

func ecamAddress(offset uint64, data []byte) (slot, function, reg int, d []byte) {
	return int(offset >> 15 & 0x1f), int(offset >> 12 & 7), int(offset & (ConfigSize - 1)), data
}
