package bootloader

import "github.com/godwit-vmm/godwit/memory"

// What lies where in the first MiB when the kernel starts. The kernel copies
// what it wants to keep before it takes this memory over; only the ACPI tables
// stay, in the range that the memory map reserves.
//
//	0x00000  real-mode vectors and BIOS data: left zero
//	0x01000  gdtAddr         segment descriptors
//	0x02000  startInfoAddr   PVH: hvm_start_info, module list, memory map
//	0x07000  zeroPageAddr    Linux: boot_params
//	0x08000  (stack)         grows down from stackTop
//	0x09000  pageTableAddr   64-bit entry: PML4, PDPT, four page directories
//	0x0f000  (end of page tables)
//	0x10000  cmdlineAddr     command line, NUL-terminated
//	0x20000  (end of command line)
//	0x9fc00  lowRAMEnd       where a PC has its extended BIOS data area
//	0xe0000  acpiAddr        RSDP, then the other ACPI tables
//	0xff000  GenerationIDAddr  virtual machine generation ID, reserved like them
//	0x100000 kernelMin       RAM again: kernel, then initrd at the far end
const (
	gdtAddr       memory.GPA = 0x1000
	startInfoAddr memory.GPA = 0x2000
	zeroPageAddr  memory.GPA = 0x7000
	stackTop      memory.GPA = 0x9000
	pageTableAddr memory.GPA = 0x9000
	cmdlineAddr   memory.GPA = 0x10000
	cmdlineEnd    memory.GPA = 0x20000
	lowRAMEnd     memory.GPA = 0x9fc00
	// acpiAddr is where the search for the RSDP begins on a PC
	// (ACPI 6.5 §5.2.5.1).
	acpiAddr  memory.GPA = 0xe0000
	acpiEnd   memory.GPA = GenerationIDAddr
	kernelMin memory.GPA = 0x100000
)

// GenerationIDAddr is where the machine keeps the generation ID (Virtual Machine
// Generation ID, Microsoft 2012). The memory map reserves the page.
const GenerationIDAddr memory.GPA = 0xff000

// GenerationIDSize is the size of the generation ID in bytes.
const GenerationIDSize = 16

// GenerationEvent is the general-purpose event that says that the ID has changed.
const GenerationEvent = 0
