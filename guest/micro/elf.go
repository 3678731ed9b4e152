package micro

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
)

// Program is a micro-guest on its way to an ELF file.
type Program struct {
	// Code is what Asm.Assemble returned. It is loaded at CodeStart, which
	// is also where it starts.
	Code []byte
	// MapGiB is how many GiB from address 0 the program can reach; 0 means
	// DefaultMapGiB. The page tables take 4 KiB of the file for each.
	MapGiB int
	// Data is loaded at DataAddr, which lies behind the code. It may be
	// empty.
	Data     []byte
	DataAddr uint64
}

// DefaultMapGiB covers the MMIO below 4 GiB and the 64-bit PCI window of a
// guest without memory above it.
const DefaultMapGiB = 8

// maxMapGiB is how many page tables fit below the result words.
const maxMapGiB = (ResultStart - pdStart) / pageSize

// ELF is the program as an executable that PVH loaders take: segments with
// physical addresses and the note that holds the entry address.
func (p Program) ELF() ([]byte, error) {
	if p.MapGiB == 0 {
		p.MapGiB = DefaultMapGiB
	}
	if p.MapGiB < 1 || p.MapGiB > maxMapGiB {
		return nil, fmt.Errorf("micro: map %d GiB: want 1 to %d", p.MapGiB, maxMapGiB)
	}
	if len(p.Code) == 0 {
		return nil, fmt.Errorf("micro: program without code")
	}
	if end := CodeStart + uint64(len(p.Code)); len(p.Data) > 0 && p.DataAddr < end {
		return nil, fmt.Errorf("micro: data at %#x: the code reaches to %#x", p.DataAddr, end)
	}
	system, err := systemImage(p.MapGiB)
	if err != nil {
		return nil, err
	}
	segments := []segment{
		{elf.PT_NOTE, elf.PF_R, 0, pvhNote(stubStart)},
		{elf.PT_LOAD, rwx, systemStart, system},
		{elf.PT_LOAD, rwx, CodeStart, p.Code},
	}
	if len(p.Data) > 0 {
		segments = append(segments, segment{elf.PT_LOAD, rwx, p.DataAddr, p.Data})
	}
	return writeELF(segments)
}

const rwx = elf.PF_R | elf.PF_W | elf.PF_X

// segment is a piece of an ELF file, and where it goes in memory.
type segment struct {
	kind  elf.ProgType
	flags elf.ProgFlag
	addr  uint64
	data  []byte
}

// writeELF puts the segments behind their headers.
func writeELF(segments []segment) ([]byte, error) {
	const headerSize, progSize = 64, 56
	parts := []any{elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: stubStart, Phoff: headerSize, Ehsize: headerSize, Phentsize: progSize, Phnum: uint16(len(segments)),
	}}
	off := uint64(headerSize + progSize*len(segments))
	for _, s := range segments {
		size := uint64(len(s.data))
		align := uint64(1)
		if s.kind == elf.PT_NOTE {
			align = 4
		}
		parts = append(parts, elf.Prog64{
			Type: uint32(s.kind), Flags: uint32(s.flags), Off: off, Vaddr: s.addr, Paddr: s.addr,
			Filesz: size, Memsz: size, Align: align,
		})
		off += size
	}
	for _, s := range segments {
		parts = append(parts, s.data)
	}
	var b bytes.Buffer
	b.Grow(int(off))
	for _, part := range parts {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			return nil, fmt.Errorf("micro: %w", err)
		}
	}
	return b.Bytes(), nil
}

// pvhNote is the ELF note XEN_ELFNOTE_PHYS32_ENTRY. Its value has 8 bytes, the
// size that Linux gives it: QEMU reads as many.
func pvhNote(entry uint64) []byte {
	const physEntry32 = 18
	var n []byte
	for _, v := range []uint32{4, 8, physEntry32} { // sizes of name and value, type
		n = binary.LittleEndian.AppendUint32(n, v)
	}
	n = append(n, "Xen\x00"...)
	return binary.LittleEndian.AppendUint64(n, entry)
}
