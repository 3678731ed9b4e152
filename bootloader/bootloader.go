// Package bootloader puts a kernel, its initial RAM disk, its command line and
// the tables that describe the machine into guest memory, and says in which
// state the first processor starts: files in, [Entry] out.
//
// Three kinds of kernel are known, told apart by their content:
//
//   - bzImage, entered at its 64-bit entry point (Linux
//     Documentation/arch/x86/boot.rst, "64-bit Boot Protocol");
//   - an uncompressed 64-bit ELF file with a PVH note, entered in 32-bit
//     protected mode (Xen docs/misc/pvh.pandoc);
//   - an uncompressed 64-bit ELF file without one, taken for a Linux vmlinux
//     and entered like a bzImage.
//
// Kernels and disks are read straight into guest memory, never into the Go
// heap. Whatever a file says about itself is checked against the file's size
// and against guest RAM before it is used.
package bootloader

import (
	"fmt"

	"github.com/godwit-vmm/godwit/memory"
)

// Options say what to boot and on which machine.
type Options struct {
	// Kernel is the kernel file.
	Kernel *File
	// Initrd is the initial RAM disk, nil for none.
	Initrd *File
	// Cmdline is the kernel command line. It must not contain a NUL.
	Cmdline string
	// Platform is the hardware that the ACPI tables and the memory map
	// describe.
	Platform Platform
}

// Load fills guest memory with all that the kernel needs and returns the state
// to start the boot processor in. mem must be fresh from [memory.New]: a
// kernel's zero-initialized data is taken to be zero already, so that it stays
// untouched. No processor may run meanwhile. After an error the content of
// guest memory is undefined.
//
// Errors are one line and name the file at fault, its size and the limit that
// it broke.
func Load(mem *memory.Guest, o Options) (Entry, error) {
	if o.Kernel == nil {
		return Entry{}, fmt.Errorf("no kernel given")
	}
	if err := o.Platform.check(); err != nil {
		return Entry{}, fmt.Errorf("platform: %w", err)
	}
	k, err := parseKernel(o.Kernel)
	if err != nil {
		return Entry{}, fmt.Errorf("kernel %w", err)
	}
	// Everything is checked before the first large read, so that a mistake
	// is reported at once.
	if err := k.checkPlace(mem); err != nil {
		return Entry{}, fmt.Errorf("kernel %w", err)
	}
	initrd, err := placeInitrd(mem, k, o.Initrd)
	if err != nil {
		return Entry{}, fmt.Errorf("initrd %w", err)
	}
	if err := writeCmdline(mem, k, o.Cmdline); err != nil {
		return Entry{}, err
	}
	if err := k.load(mem); err != nil {
		return Entry{}, fmt.Errorf("kernel %w", err)
	}
	if err := loadInitrd(mem, initrd, o.Initrd); err != nil {
		return Entry{}, fmt.Errorf("initrd %w", err)
	}
	rsdp, err := writeACPI(mem, &o.Platform)
	if err != nil {
		return Entry{}, fmt.Errorf("ACPI tables: %w", err)
	}
	b := bootInfo{
		cmdlineSize: uint64(len(o.Cmdline)),
		initrd:      initrd,
		rsdp:        rsdp,
		memoryMap:   memoryMap(mem.Ranges(), &o.Platform),
	}
	if k.protocol == PVH {
		if err := writeStartInfo(mem, &b); err != nil {
			return Entry{}, fmt.Errorf("PVH start info: %w", err)
		}
		return enter32(mem, k)
	}
	if err := writeZeroPage(mem, k, &b); err != nil {
		return Entry{}, fmt.Errorf("zero page: %w", err)
	}
	return enter64(mem, k)
}

// bootInfo is what both boot protocols tell the kernel, each in a form of its
// own.
type bootInfo struct {
	cmdlineSize uint64       // bytes at cmdlineAddr, without the NUL
	initrd      memory.Range // empty for none
	rsdp        memory.GPA
	memoryMap   []mapEntry
}
