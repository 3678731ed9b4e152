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
}

// DefaultMapGiB covers the MMIO below 4 GiB and the 64-bit PCI window of a
// guest without memory above it.
const DefaultMapGiB = 8

// maxMapGiB is how many page tables fit below the result words.
const maxMapGiB = (ResultStart - pdStart) / pageSize

// ELF is the program as an executable that PVH loaders take: two segments with
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
	system, err := systemImage(p.MapGiB)
	if err != nil {
		return nil, err
	}
	note := pvhNote(stubStart)

	const headers = 64 + 3*56
	file := uint64(headers)
	segment := func(t elf.ProgType, flags elf.ProgFlag, addr uint64, data []byte, align uint64) elf.Prog64 {
		h := elf.Prog64{
			Type: uint32(t), Flags: uint32(flags), Off: file, Vaddr: addr, Paddr: addr,
			Filesz: uint64(len(data)), Memsz: uint64(len(data)), Align: align,
		}
		file += uint64(len(data))
		return h
	}
	const rwx = elf.PF_R | elf.PF_W | elf.PF_X
	progs := [3]elf.Prog64{
		segment(elf.PT_NOTE, elf.PF_R, 0, note, 4),
		segment(elf.PT_LOAD, rwx, systemStart, system, 1),
		segment(elf.PT_LOAD, rwx, CodeStart, p.Code, 1),
	}
	header := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: stubStart, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: uint16(len(progs)),
	}
	var b bytes.Buffer
	b.Grow(int(file))
	for _, part := range []any{header, progs, note, system, p.Code} {
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
