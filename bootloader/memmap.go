package bootloader

import "github.com/godwit-vmm/godwit/memory"

// The types of a range in the memory map (ACPI 6.5 §15.1, table 15.6). The
// e820 table and PVH's memory map share them.
const (
	mapRAM      = 1
	mapReserved = 2
)

// mapEntry is a range of the memory map that the kernel gets.
type mapEntry struct {
	memory.Range
	kind uint32
}

// memoryMap describes RAM and the addresses that the kernel must not use for
// anything else.
func memoryMap(ram []memory.Range, p *Platform) []mapEntry {
	reserve := func(start, end memory.GPA) mapEntry {
		return mapEntry{memory.Range{Start: start, Size: uint64(end - start)}, mapReserved}
	}
	m := []mapEntry{
		{memory.Range{Start: 0, Size: uint64(lowRAMEnd)}, mapRAM},
		reserve(lowRAMEnd, kernelMin),
	}
	low := ram[0]
	if low.End() > kernelMin {
		m = append(m, mapEntry{memory.Range{Start: kernelMin, Size: uint64(low.End() - kernelMin)}, mapRAM})
	}
	m = append(m,
		// Linux uses ECAM only where the memory map or the DSDT says
		// that it is reserved.
		reserve(p.ECAM.Start, p.ECAM.End()),
		reserve(memory.KVMIdentityMap, memory.KVMTSS+3*memory.PageSize),
	)
	for _, high := range ram[1:] {
		m = append(m, mapEntry{high, mapRAM})
	}
	return m
}
