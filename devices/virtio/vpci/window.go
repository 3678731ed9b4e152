package vpci

import (
	"encoding/binary"
	"slices"

	"github.com/godwit-vmm/godwit/devices/pci"
)

// windowCapability is the window to the BAR in configuration space, for software
// that cannot map BARs (§4.1.4.9): it writes BAR, offset and length there, and
// then reads or writes the data.
func (f *Function) windowCapability() pci.Capability {
	const dataSize = 4
	c := vendorCapability(capPCI, 0, 0, make([]byte, dataSize)...)
	c.Writable = make([]byte, len(c.Body))
	c.Writable[capBAR] = 0xff
	for i := capOffset; i < len(c.Body); i++ {
		c.Writable[i] = 0xff
	}
	touchesData := func(offset, size int) bool { return offset+size > capExtra }
	c.BeforeRead = func(body []byte, offset, size int) {
		if data, at, ok := window(body); ok && touchesData(offset, size) {
			(*registers)(f).Read(at, data)
		}
	}
	c.AfterWrite = func(body []byte, offset, size int) {
		if data, at, ok := window(body); ok && touchesData(offset, size) {
			// The status register may answer by a reset of this function,
			// which leaves configuration space alone; the copy is for
			// devices, which do not own what they are given.
			(*registers)(f).Write(at, slices.Clone(data))
		}
	}
	return c
}

// window says which access the capability is set to; ok is false if it is none
// that a driver may make.
func window(body []byte) (data []byte, at uint64, ok bool) {
	offset := binary.LittleEndian.Uint32(body[capOffset:])
	length := binary.LittleEndian.Uint32(body[capLength:])
	switch length {
	case 1, 2, 4:
	default:
		return nil, 0, false
	}
	if body[capBAR] != registersBAR || offset%length != 0 || offset >= barSize {
		return nil, 0, false
	}
	return body[capExtra : capExtra+length], uint64(offset), true
}
