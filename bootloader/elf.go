package bootloader

import (
	"debug/elf"
	"encoding/binary"

	"github.com/godwit-vmm/godwit/memory"
)

// The standard library's ELF reader takes memory for every section header that
// a file claims to have. A loader needs program headers only, so they are read
// here one by one; debug/elf lends its types.
const (
	elfHeaderSize  = 64
	progHeaderSize = 56
	// maxProgHeaders is far above the handful that kernels have.
	maxProgHeaders = 64
	// maxNotes bounds the note segments, in bytes each.
	maxNotes = 64 << 10
	// vmlinuxCmdlineMax is Linux's COMMAND_LINE_SIZE on x86 without the
	// NUL. An ELF kernel does not say its own limit.
	vmlinuxCmdlineMax = 2047
)

// parseELF reads the headers of an ELF kernel. head is the start of the file.
func parseELF(f *File, head []byte) (*kernel, error) {
	h, err := elfHeader(f, head)
	if err != nil {
		return nil, err
	}
	k := &kernel{
		file:       f,
		protocol:   Linux64,
		entry:      memory.GPA(h.Entry),
		cmdlineMax: vmlinuxCmdlineMax,
		// PVH has the kernel in 32-bit mode, and RAM below the PCI
		// hole is good for any Linux.
		initrdMax: memory.PCIHoleStart - 1,
		setup:     vmlinuxSetup(),
	}
	for i := range uint64(h.Phnum) {
		var raw [progHeaderSize]byte
		// Neither factor is near 64 bits, and contains copes with any
		// sum that did not wrap.
		off := h.Phoff + i*progHeaderSize
		if off < h.Phoff {
			return nil, f.errorf("program headers at offset %#x: outside the file", h.Phoff)
		}
		if err := f.readAt(raw[:], off); err != nil {
			return nil, err
		}
		var p elf.Prog64
		if _, err := binary.Decode(raw[:], binary.LittleEndian, &p); err != nil {
			return nil, f.errorf("program header: %w", err)
		}
		if err := k.addProg(&p); err != nil {
			return nil, err
		}
	}
	if !k.hasCode(k.entry) {
		return nil, f.errorf("entry point %#x is not in a loaded segment: want physical addresses, as in vmlinux", uint64(k.entry))
	}
	return k, nil
}

func elfHeader(f *File, head []byte) (*elf.Header64, error) {
	if f.Size < elfHeaderSize {
		return nil, f.errorf("truncated: an ELF header alone has %d bytes", elfHeaderSize)
	}
	var h elf.Header64
	if _, err := binary.Decode(head[:elfHeaderSize], binary.LittleEndian, &h); err != nil {
		return nil, f.errorf("ELF header: %w", err)
	}
	if c := elf.Class(h.Ident[elf.EI_CLASS]); c != elf.ELFCLASS64 {
		return nil, f.errorf("ELF file of class %v: want a 64-bit kernel", c)
	}
	if d := elf.Data(h.Ident[elf.EI_DATA]); d != elf.ELFDATA2LSB {
		return nil, f.errorf("ELF file of byte order %v: want little-endian", d)
	}
	if m := elf.Machine(h.Machine); m != elf.EM_X86_64 {
		return nil, f.errorf("ELF file for %v: want %v", m, elf.EM_X86_64)
	}
	if t := elf.Type(h.Type); t != elf.ET_EXEC && t != elf.ET_DYN {
		return nil, f.errorf("ELF file of type %v: want an executable", t)
	}
	if h.Phentsize != progHeaderSize || h.Phnum == 0 || h.Phnum > maxProgHeaders {
		return nil, f.errorf("%d program headers of %d bytes: want 1 to %d of %d bytes", h.Phnum, h.Phentsize, maxProgHeaders, progHeaderSize)
	}
	return &h, nil
}

// addProg takes what a program header tells: something to load, or notes.
func (k *kernel) addProg(p *elf.Prog64) error {
	switch elf.ProgType(p.Type) {
	case elf.PT_LOAD:
		return k.addSegment(p)
	case elf.PT_NOTE:
		return k.readNotes(p)
	}
	return nil
}

func (k *kernel) addSegment(p *elf.Prog64) error {
	if p.Memsz == 0 {
		return nil
	}
	if p.Filesz > p.Memsz {
		return k.file.errorf("segment at %#x has %d bytes in the file and %d in memory", p.Paddr, p.Filesz, p.Memsz)
	}
	if !k.file.contains(p.Off, p.Filesz) {
		return k.file.errorf("truncated: segment of %d bytes at offset %d", p.Filesz, p.Off)
	}
	s := segment{memory.Range{Start: memory.GPA(p.Paddr), Size: p.Memsz}, p.Off, p.Filesz}
	// An end below the start is an overflow. checkPlace looks at the rest.
	if s.End() < s.Start {
		return k.file.errorf("segment of %d bytes at address %#x", p.Memsz, p.Paddr)
	}
	// Overlapping segments would let a small file cost any amount of
	// copying, and no linker makes them.
	for _, o := range k.segments {
		if s.Start < o.End() && o.Start < s.End() {
			return k.file.errorf("segments at addresses %#x and %#x overlap", uint64(o.Start), uint64(s.Start))
		}
	}
	k.segments = append(k.segments, s)
	return nil
}

func (k *kernel) hasCode(entry memory.GPA) bool {
	for _, s := range k.segments {
		if s.Contains(entry, 1) {
			return true
		}
	}
	return false
}

// readNotes looks for the PVH entry point among the notes of a segment.
func (k *kernel) readNotes(p *elf.Prog64) error {
	if p.Filesz > maxNotes {
		return k.file.errorf("notes of %d bytes: the limit is %d", p.Filesz, maxNotes)
	}
	notes := make([]byte, p.Filesz)
	if err := k.file.readAt(notes, p.Off); err != nil {
		return err
	}
	entry, ok := pvhEntry(notes, p.Align)
	if !ok {
		return nil
	}
	k.protocol = PVH
	k.entry = memory.GPA(entry)
	return nil
}

// xenPhys32Entry is XEN_ELFNOTE_PHYS32_ENTRY: the physical address of a 32-bit
// entry point (Xen public/elfnote.h).
const (
	xenPhys32Entry = 18
	xenNoteName    = "Xen\x00"
)

// pvhEntry finds the PVH entry point in the notes of a segment. Malformed
// notes end the search. align is the segment's: 8 starts descriptors and notes
// at multiples of 8 bytes, all else at multiples of 4.
func pvhEntry(notes []byte, align uint64) (entry uint64, ok bool) {
	const header = 12
	if align != 8 {
		align = 4
	}
	size := uint64(len(notes))
	pad := func(off uint64) uint64 { return (off + align - 1) &^ (align - 1) }
	// The sizes below have 32 bits each, so that the sums cannot overflow.
	for off := uint64(0); off+header <= size; {
		h := notes[off:]
		nameSize := uint64(binary.LittleEndian.Uint32(h))
		descSize := uint64(binary.LittleEndian.Uint32(h[4:]))
		kind := binary.LittleEndian.Uint32(h[8:])
		name := off + header
		desc := pad(name + nameSize)
		if desc+descSize > size {
			break
		}
		if kind == xenPhys32Entry && string(notes[name:name+nameSize]) == xenNoteName {
			switch descSize {
			case 4:
				return uint64(binary.LittleEndian.Uint32(notes[desc:])), true
			case 8:
				return binary.LittleEndian.Uint64(notes[desc:]), true
			}
		}
		off = pad(desc + descSize)
	}
	return 0, false
}
