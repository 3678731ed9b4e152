package bootloader

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/godwit-vmm/godwit/memory"
)

// kernel is a kernel file understood: which bytes go where, and how it wants
// to be entered.
type kernel struct {
	file     *File
	protocol Protocol
	entry    memory.GPA
	segments []segment
	// cmdlineMax is the longest command line in bytes, without the NUL.
	cmdlineMax uint64
	// initrdMax is the highest address that the initrd may take below
	// 4 GiB; initrdHigh says that it may also lie anywhere above.
	initrdMax  memory.GPA
	initrdHigh bool
	// setup is the zero page with the kernel's setup header filled in.
	setup zeroPage
}

// segment is a part of the kernel in memory: size bytes, the first fileSize of
// which come from offset of the file. The others are zero at start.
type segment struct {
	memory.Range
	offset, fileSize uint64
}

// end is the first address behind the kernel and the memory that it needs
// before it reads the memory map.
func (k *kernel) end() memory.GPA {
	var end memory.GPA
	for _, s := range k.segments {
		end = max(end, s.End())
	}
	return end
}

// checkPlace makes sure that all segments lie inside the RAM between 1 MiB and
// the PCI hole.
func (k *kernel) checkPlace(mem *memory.Guest) error {
	room := memory.Range{Start: kernelMin, Size: uint64(memory.PCIHoleStart - kernelMin)}
	for _, s := range k.segments {
		if !room.Contains(s.Start, s.Size) {
			return k.file.errorf("wants %d bytes at address %#x: a kernel must lie between %#x and %#x",
				s.Size, uint64(s.Start), uint64(room.Start), uint64(room.End()))
		}
	}
	if end, ram := k.end(), mem.Regions()[0].End(); end > ram {
		return k.file.errorf("needs memory up to address %#x, guest RAM ends at %#x: give at least %s of memory",
			uint64(end), uint64(ram), mib(end))
	}
	return nil
}

// load reads the segments into guest memory.
func (k *kernel) load(mem *memory.Guest) error {
	for _, s := range k.segments {
		if err := loadFile(mem, s.Start, k.file, s.offset, s.fileSize); err != nil {
			return err
		}
	}
	return nil
}

// loadFile reads n bytes at offset off of the file to gpa.
func loadFile(mem *memory.Guest, gpa memory.GPA, f *File, off, n uint64) error {
	p, err := mem.Slice(gpa, n)
	if err != nil {
		return f.errorf("%w", err)
	}
	defer mem.MarkDirty(gpa, n)
	return f.readAt(p, off)
}

// mib formats an amount of memory rounded up to MiB.
func mib(n memory.GPA) string { return fmt.Sprintf("%d MiB", (uint64(n)+1<<20-1)>>20) }

// parseKernel finds out what kind of kernel the file is and reads its headers.
func parseKernel(f *File) (*kernel, error) {
	// A file that is shorter than the longest header reads as if zeros
	// followed; small ELF programs are.
	var head [setupHeaderMax]byte
	if err := f.readAt(head[:max(0, min(f.Size, setupHeaderMax))], 0); err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head[:], []byte("\x7fELF")):
		return parseELF(f, head[:])
	case f.Size < setupHeaderMax:
		return nil, f.errorf("truncated or not a kernel: the headers of a bzImage alone take %d bytes", setupHeaderMax)
	case binary.LittleEndian.Uint16(head[offBootFlag:]) == bootFlag:
		return parseBzImage(f, head[:])
	}
	for _, c := range compressions {
		if bytes.HasPrefix(head[:], []byte(c.magic)) {
			return nil, f.errorf("compressed with %s: decompress it first, or give the bzImage", c.name)
		}
	}
	return nil, f.errorf("not a kernel: want a 64-bit x86 bzImage or ELF file, found first bytes % x", head[:8])
}

// compressions are the formats that a distribution may wrap a whole kernel in.
var compressions = []struct{ name, magic string }{
	{"gzip", "\x1f\x8b"},
	{"xz", "\xfd7zXZ"},
	{"zstd", "\x28\xb5\x2f\xfd"},
	{"lz4", "\x02\x21\x4c\x18"},
	{"lz4", "\x04\x22\x4d\x18"},
	{"bzip2", "BZh"},
}
