package bootloader

import (
	"fmt"
	"strings"

	"github.com/godwit-vmm/godwit/memory"
)

// placeInitrd finds the highest page-aligned place for the initrd that the
// kernel can reach: below 4 GiB behind the kernel, else in high RAM if the
// kernel allows that. A nil file yields an empty range.
func placeInitrd(mem *memory.Guest, k *kernel, f *File) (memory.Range, error) {
	if f == nil {
		return memory.Range{}, nil
	}
	if f.Size <= 0 {
		return memory.Range{}, f.errorf("empty: leave it out, or give a cpio archive")
	}
	size := uint64(f.Size)
	ram := mem.Ranges()
	start, end := k.end(), min(ram[0].End(), k.initrdMax+1)
	if gpa, ok := placeHigh(start, end, size); ok {
		return memory.Range{Start: gpa, Size: size}, nil
	}
	if k.initrdHigh {
		for _, r := range ram[1:] {
			if gpa, ok := placeHigh(r.Start, r.End(), size); ok {
				return memory.Range{Start: gpa, Size: size}, nil
			}
		}
	}
	if end > start && end == ram[0].End() && end < memory.PCIHoleStart {
		// More memory may help as far as the numbers can tell.
		if need := uint64(start) + size; need > size && need <= uint64(memory.PCIHoleStart) {
			return memory.Range{}, f.errorf("too large: guest RAM leaves %d bytes behind the kernel; give at least %s of memory",
				uint64(end-start), mib(memory.GPA(need+memory.PageSize)))
		}
	}
	var room uint64
	if end > start {
		room = uint64(end - start)
	}
	return memory.Range{}, f.errorf("too large: the limit is %d bytes between the kernel's end %#x and address %#x",
		room, uint64(start), uint64(end))
}

// placeHigh returns the highest page in [start, end) from which size bytes fit.
func placeHigh(start, end memory.GPA, size uint64) (memory.GPA, bool) {
	if end < start || size > uint64(end-start) {
		return 0, false
	}
	gpa := (end - memory.GPA(size)) &^ (memory.PageSize - 1)
	return gpa, gpa >= start
}

// loadInitrd reads the initrd to the place found for it.
func loadInitrd(mem *memory.Guest, r memory.Range, f *File) error {
	if f == nil {
		return nil
	}
	return loadFile(mem, r.Start, f, 0, r.Size)
}

// writeCmdline checks the command line against the kernel's limit and puts it,
// NUL-terminated, at cmdlineAddr.
func writeCmdline(mem *memory.Guest, k *kernel, cmdline string) error {
	limit := min(k.cmdlineMax, uint64(cmdlineEnd-cmdlineAddr)-1)
	if uint64(len(cmdline)) > limit {
		return fmt.Errorf("command line of %d bytes: the limit of kernel %s is %d", len(cmdline), k.file.Name, limit)
	}
	if i := strings.IndexByte(cmdline, 0); i >= 0 {
		return fmt.Errorf("command line of %d bytes has a NUL at offset %d", len(cmdline), i)
	}
	return mem.Write(cmdlineAddr, append([]byte(cmdline), 0))
}
