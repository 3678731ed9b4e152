package memory

import "fmt"

// GPA is a guest physical address in bytes.
type GPA uint64

// The fixed points of the guest physical address space. Guest RAM fills the
// space from 0 up to PCIHoleStart and goes on at HighStart, so that a guest of
// any size leaves the 32-bit PCI hole free.
const (
	PageSize = 4096

	// PCIHoleStart is where RAM below 4 GiB ends at the latest.
	PCIHoleStart GPA = 0xc000_0000
	// PCIWindowStart and PCIWindowEnd bound the 32-bit addresses that PCI
	// base address registers may take.
	PCIWindowStart GPA = 0xc000_0000
	PCIWindowEnd   GPA = 0xe000_0000
	// ECAMStart is where the memory-mapped PCI configuration space begins
	// (PCI Firmware Specification 3.3 §4.1.2). ECAMSize covers one bus.
	ECAMStart GPA    = 0xe000_0000
	ECAMSize  uint64 = 1 << 20
	// IOAPICStart is the register window of the I/O APIC.
	IOAPICStart GPA = 0xfec0_0000
	// LAPICStart is the window of the local APICs, which KVM serves.
	LAPICStart GPA = 0xfee0_0000
	// KVMIdentityMap and KVMTSS are the four pages that KVM on Intel takes
	// for itself: one identity map and three of task state (KVM API §4.40
	// and §4.36). They must not be covered by RAM.
	KVMIdentityMap GPA = 0xfeff_c000
	KVMTSS         GPA = 0xfeff_d000
	// HighStart is where RAM goes on above the PCI hole.
	HighStart GPA = 1 << 32
)

// The smallest and largest guest. The upper limit keeps RAM plus a 64-bit PCI
// window inside 46 address bits, which every 64-bit processor has.
const (
	MinSize uint64 = 1 << 20
	MaxSize uint64 = 16 << 40
)

// Range is a span of guest physical addresses: Size bytes from Start.
type Range struct {
	Start GPA
	Size  uint64
}

// End is the first address behind the range.
func (r Range) End() GPA { return r.Start + GPA(r.Size) }

// Contains tells whether the n bytes at gpa lie inside the range. It does not
// overflow for any gpa and n.
func (r Range) Contains(gpa GPA, n uint64) bool {
	if gpa < r.Start {
		return false
	}
	off := uint64(gpa - r.Start)
	return off <= r.Size && n <= r.Size-off
}

// LayoutRAM splits size bytes of RAM into the ranges that it takes in the
// guest physical address space: one range, or two around the PCI hole.
func LayoutRAM(size uint64) ([]Range, error) {
	if size < MinSize || size > MaxSize {
		return nil, fmt.Errorf("guest memory of %d bytes: want between %d MiB and %d GiB", size, MinSize>>20, MaxSize>>30)
	}
	if size%PageSize != 0 {
		return nil, fmt.Errorf("guest memory of %d bytes is not a multiple of the page size %d", size, PageSize)
	}
	if size <= uint64(PCIHoleStart) {
		return []Range{{0, size}}, nil
	}
	return []Range{
		{0, uint64(PCIHoleStart)},
		{HighStart, size - uint64(PCIHoleStart)},
	}, nil
}

// PCI64Start is the lowest address above all RAM of the given layout that is
// aligned to 1 GiB: where 64-bit PCI base address registers may go.
func PCI64Start(ram []Range) GPA {
	const align = 1 << 30
	end := HighStart
	for _, r := range ram {
		end = max(end, r.End())
	}
	return (end + align - 1) &^ (align - 1)
}
