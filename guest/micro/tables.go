package micro

import (
	"encoding/binary"
	"fmt"
)

// The page tables follow the stub page and the I/O permission bitmap.
const (
	pageSize  = 4096
	pml4Start = systemStart + 3*pageSize
	pdptStart = systemStart + 4*pageSize
	pdStart   = systemStart + 5*pageSize // one page for each GiB
)

// Selectors. SYSEXIT dictates the order of the first six descriptors: it takes
// the 64-bit user code segment at SYSENTER_CS+32 and its stack segment at +40
// (SDM vol. 2, SYSEXIT).
const (
	selKernelCode = 0x08
	selUserCode   = 0x28 | 3
	selUserStack  = 0x30 | 3
	selTSS        = 0x38
)

// gdt is the global descriptor table (SDM vol. 3 §3.4.5). The accessed bits
// are set, so that loading a segment does not write to it.
func gdt() []uint64 {
	return []uint64{
		0,
		0x00af_9b00_0000_ffff, // 0x08 code, 64-bit, ring 0
		0x00cf_9300_0000_ffff, // 0x10 data, ring 0
		0x00cf_fb00_0000_ffff, // 0x18 code, 32-bit, ring 3, unused
		0x00cf_f300_0000_ffff, // 0x20 data, ring 3, unused
		0x00af_fb00_0000_ffff, // 0x28 code, 64-bit, ring 3
		0x00cf_f300_0000_ffff, // 0x30 data, ring 3
		0x0000_8900_0000_0000 | tssStart<<16 | tssLimit, // 0x38 64-bit TSS
		0, // its upper half
	}
}

// systemImage is what lies in guest memory from systemStart: the stub page and
// page tables for the lowest mapGiB GiB. Everything is made here and nothing
// by the stub, because a KVM that emulates ring 0 needs about half a
// microsecond for each instruction.
func systemImage(mapGiB int) ([]byte, error) {
	stub, handlers, err := stubCode()
	if err != nil {
		return nil, err
	}
	const stackRoom = 512
	if room := kernelStack - stackRoom - stubStart; len(stub) > room {
		return nil, fmt.Errorf("micro: the stub has %d bytes, %d fit", len(stub), room)
	}
	image := make(image, pdStart-systemStart+mapGiB*pageSize)
	copy(image.at(stubStart), stub)
	for i, d := range gdt() {
		image.put64(gdtStart+8*i, d)
	}
	image.putPointer(gdtPointer, gdtStart, 8*len(gdt())-1)
	image.putPointer(idtPointer, idtStart, 16*vectors-1)
	// RSP0 is the stack that a fault in ring 3 switches to (SDM vol. 3
	// §8.7). It is not aligned to 8 bytes in the TSS.
	image.put64(tssStart+4, kernelStack)
	// IOPL 3 should be enough for port I/O, but a KVM that emulates ring 0
	// has been seen to ask the I/O permission bitmap nevertheless.
	binary.LittleEndian.PutUint16(image.at(tssStart+0x66), ioBitmap-tssStart)
	for v, offset := range handlers {
		image.putGate(idtStart+16*v, stubStart+uint64(offset))
	}
	image.putPageTables(mapGiB)
	return image, nil
}

// image is guest memory from systemStart, addressed as the guest does.
type image []byte

func (m image) at(addr int) []byte       { return m[addr-systemStart:] }
func (m image) put64(addr int, v uint64) { binary.LittleEndian.PutUint64(m.at(addr), v) }

// putPointer writes an operand of LGDT or LIDT. The 64-bit LIDT reads ten
// bytes, of which the last four stay zero.
func (m image) putPointer(addr int, base uint32, limit int) {
	binary.LittleEndian.PutUint16(m.at(addr), uint16(limit))
	binary.LittleEndian.PutUint32(m.at(addr+2), base)
}

// putGate writes an interrupt gate to ring 0 (SDM vol. 3 §6.14.1).
func (m image) putGate(addr int, handler uint64) {
	const present, interruptGate = 1 << 15, 0xe << 8
	m.put64(addr, handler&0xffff|selKernelCode<<16|(present|interruptGate)<<32|handler>>16&0xffff<<48)
	m.put64(addr+8, handler>>32)
}

// putPageTables maps the lowest mapGiB GiB to themselves in pages of 2 MiB,
// which every 64-bit processor has (SDM vol. 3 §4.5). Accessed and dirty bits
// are set, so that the processor does not write to the tables: they stay clean
// in the dirty log.
func (m image) putPageTables(mapGiB int) {
	const (
		table = 1<<5 | 1<<2 | 1<<1 | 1<<0 // accessed, user, writable, present
		page  = 1<<7 | 1<<6 | table       // large, dirty
	)
	m.put64(pml4Start, pdptStart|table)
	for g := range mapGiB {
		m.put64(pdptStart+8*g, uint64(pdStart+g*pageSize)|table)
		for i := range 512 {
			m.put64(pdStart+g*pageSize+8*i, uint64(g)<<30|uint64(i)<<21|page)
		}
	}
}
