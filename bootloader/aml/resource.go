package aml

import "encoding/binary"

// Resource is one encoded resource descriptor (ACPI 6.5 §6.4).
type Resource []byte

// Tags of the descriptors below.
const (
	tagIO          = 0x47
	tagEnd         = 0x79
	tagMemory32    = 0x86
	tagDWordWindow = 0x87
	tagWordWindow  = 0x88
	tagInterrupt   = 0x89
	tagQWordWindow = 0x8a
)

// Kinds of address space in a window descriptor.
const (
	windowMemory = 0
	windowIO     = 1
	windowBus    = 2
)

const (
	// windowFixed: produced for the children, both ends fixed.
	windowFixed     = 1<<2 | 1<<3
	windowReadWrite = 1 << 0
	windowAllIO     = 3 // ISA and non-ISA ranges
)

// Resources is the buffer of a _CRS object.
func Resources(list ...Resource) Term {
	var p []byte
	for _, r := range list {
		p = append(p, r...)
	}
	// A checksum of zero stands for a correct one.
	return Buffer(append(p, tagEnd, 0))
}

// IO is size fixed I/O ports from base.
func IO(base uint16, size uint8) Resource {
	const decode16 = 1
	lo, hi := byte(base), byte(base>>8)
	return Resource{tagIO, decode16, lo, hi, lo, hi, 1, size}
}

// Interrupt is an edge-triggered, active-high interrupt that is not shared.
func Interrupt(gsi uint32) Resource {
	const consumer, edge, count = 1 << 0, 1 << 1, 1
	r := Resource{tagInterrupt, 6, 0, consumer | edge, count}
	return binary.LittleEndian.AppendUint32(r, gsi)
}

// Memory32 is a fixed, writable range of memory below 4 GiB.
func Memory32(base, size uint32) Resource {
	r := Resource{tagMemory32, 9, 0, windowReadWrite}
	r = binary.LittleEndian.AppendUint32(r, base)
	return binary.LittleEndian.AppendUint32(r, size)
}

// BusWindow is the range of bus numbers behind a bridge.
func BusWindow(first, last uint8) Resource {
	return window(tagWordWindow, 2, windowBus, 0, uint64(first), uint64(last))
}

// IOWindow is a range of ports that a bridge forwards.
func IOWindow(first, last uint16) Resource {
	return window(tagWordWindow, 2, windowIO, windowAllIO, uint64(first), uint64(last))
}

// MemoryWindow32 is a range of memory below 4 GiB that a bridge forwards.
func MemoryWindow32(first, last uint32) Resource {
	return window(tagDWordWindow, 4, windowMemory, windowReadWrite, uint64(first), uint64(last))
}

// MemoryWindow64 is a range of memory anywhere that a bridge forwards.
func MemoryWindow64(first, last uint64) Resource {
	return window(tagQWordWindow, 8, windowMemory, windowReadWrite, first, last)
}

// window is an address space descriptor with numbers of width bytes: a fixed
// range that is seen at the same addresses on both sides (ACPI 6.5 §6.4.3.5).
func window(tag byte, width int, kind, flags byte, first, last uint64) Resource {
	const granularity, translation = 0, 0
	r := Resource{tag, byte(3 + 5*width), 0, kind, windowFixed, flags}
	for _, x := range []uint64{granularity, first, last, translation, last - first + 1} {
		r = append(r, binary.LittleEndian.AppendUint64(nil, x)[:width]...)
	}
	return r
}
