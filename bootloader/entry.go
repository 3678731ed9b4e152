package bootloader

import (
	"encoding/binary"

	"github.com/godwit-vmm/godwit/memory"
)

// Protocol is the agreement by which a kernel is entered.
type Protocol int

const (
	// Linux64 is the 64-bit Linux boot protocol: long mode, RSI points to
	// the zero page.
	Linux64 Protocol = iota + 1
	// PVH is the Xen PVH boot protocol: 32-bit protected mode, EBX points
	// to hvm_start_info.
	PVH
)

// String returns the name that messages use.
func (p Protocol) String() string {
	switch p {
	case Linux64:
		return "Linux 64-bit"
	case PVH:
		return "PVH"
	}
	return "unknown"
}

// Entry is the state in which the boot processor starts. What it does not
// mention is as after reset but for RFLAGS, which is 2 (interrupts off), and
// the IDT, which is empty. The other processors wait for INIT and SIPI.
type Entry struct {
	Protocol Protocol
	// RIP is a guest physical address; paging, where it is on, maps the
	// first 4 GiB to themselves.
	RIP, RSP, RBX, RSI uint64
	// CR0, CR3, CR4 and EFER say the mode: 32-bit protected mode without
	// paging, or long mode.
	CR0, CR3, CR4, EFER uint64
	// GDTBase and GDTLimit go into GDTR. The descriptors of the segments
	// below are there.
	GDTBase  uint64
	GDTLimit uint16
	// Code is for CS, Data for DS, ES, FS, GS and SS, Task for TR. LDTR is
	// unusable.
	Code, Data, Task Segment
}

// Segment is a segment register with its hidden part (SDM volume 3 §3.4.5),
// cut the way that KVM takes it.
type Segment struct {
	Selector uint16
	Base     uint64
	Limit    uint32 // in bytes, also where Granular is set
	Type     uint8  // 4 bits
	CodeData bool   // S: a code or data segment, not a system segment
	DPL      uint8
	Present  bool
	Long     bool // L: 64-bit code
	Default  bool // D/B: 32-bit operands and stack
	Granular bool // G: the descriptor counts the limit in pages
}

// Selectors. Linux wants its code segment at 0x10 and its data segment at 0x18
// (boot.rst, "64-bit Boot Protocol").
const (
	codeSelector = 0x10
	dataSelector = 0x18
	taskSelector = 0x20
	gdtEntries   = 6 // the task descriptor takes two in long mode
)

const (
	typeCode    = 0xb // execute, read, accessed
	typeData    = 0x3 // read, write, accessed
	typeTask    = 0xb // busy TSS, 32-bit or 64-bit by mode
	taskLimit   = 0x67
	flatLimit   = 0xffff_ffff
	cr0PE       = 1 << 0
	cr0ET       = 1 << 4
	cr0PG       = 1 << 31
	cr4PAE      = 1 << 5
	eferLME     = 1 << 8
	eferLMA     = 1 << 10
	ptePresent  = 1 << 0
	pteWrite    = 1 << 1
	pteLarge    = 1 << 7
	largePage   = 2 << 20
	tableLength = 512
	// identityGiB is how much the page tables map. It holds all that a
	// kernel is handed but for an initrd in high RAM, which it maps itself.
	identityGiB = 4
)

// enter32 is the PVH entry state: flat 32-bit protected mode, paging off.
func enter32(mem *memory.Guest, k *kernel) (Entry, error) {
	e := flatEntry(k)
	e.RBX = uint64(startInfoAddr)
	e.CR0 = cr0PE | cr0ET
	e.Code.Default = true
	return e, writeGDT(mem, &e)
}

// enter64 is the 64-bit Linux entry state: long mode, the first 4 GiB mapped
// to themselves.
func enter64(mem *memory.Guest, k *kernel) (Entry, error) {
	e := flatEntry(k)
	e.RSI = uint64(zeroPageAddr)
	e.CR0 = cr0PE | cr0ET | cr0PG
	e.CR3 = uint64(pageTableAddr)
	e.CR4 = cr4PAE
	e.EFER = eferLME | eferLMA
	e.Code.Long = true
	if err := writePageTables(mem); err != nil {
		return Entry{}, err
	}
	return e, writeGDT(mem, &e)
}

// flatEntry is what both entry states have in common.
func flatEntry(k *kernel) Entry {
	flat := Segment{Limit: flatLimit, CodeData: true, Present: true, Granular: true}
	code, data := flat, flat
	code.Selector, code.Type = codeSelector, typeCode
	data.Selector, data.Type, data.Default = dataSelector, typeData, true
	return Entry{
		Protocol: k.protocol,
		RIP:      uint64(k.entry),
		RSP:      uint64(stackTop),
		GDTBase:  uint64(gdtAddr),
		GDTLimit: gdtEntries*8 - 1,
		Code:     code,
		Data:     data,
		Task:     Segment{Selector: taskSelector, Limit: taskLimit, Type: typeTask, Present: true},
	}
}

// descriptor packs the segment as the GDT holds it (SDM volume 3, figure 3-8).
func (s *Segment) descriptor() uint64 {
	bit := func(b bool, n uint) uint64 {
		if b {
			return 1 << n
		}
		return 0
	}
	limit := uint64(s.Limit)
	if s.Granular {
		limit >>= 12
	}
	return limit&0xffff | limit>>16&0xf<<48 |
		s.Base&0xff_ffff<<16 | s.Base>>24&0xff<<56 |
		uint64(s.Type&0xf)<<40 | bit(s.CodeData, 44) | uint64(s.DPL&3)<<45 | bit(s.Present, 47) |
		bit(s.Long, 53) | bit(s.Default, 54) | bit(s.Granular, 55)
}

// writeGDT puts the descriptors of the entry state into guest memory, for a
// kernel that reloads a segment register before it has a GDT of its own.
func writeGDT(mem *memory.Guest, e *Entry) error {
	var gdt [gdtEntries * 8]byte
	for _, s := range []*Segment{&e.Code, &e.Data, &e.Task} {
		binary.LittleEndian.PutUint64(gdt[s.Selector:], s.descriptor())
	}
	return mem.Write(gdtAddr, gdt[:])
}

// writePageTables maps the first 4 GiB to themselves with 2 MiB pages, which
// every 64-bit processor has (SDM volume 3 §4.5).
func writePageTables(mem *memory.Guest) error {
	const directories = pageTableAddr + 2*memory.PageSize
	var tables [(2 + identityGiB) * tableLength * 8]byte
	put := func(table, index int, x uint64) {
		binary.LittleEndian.PutUint64(tables[(table*tableLength+index)*8:], x)
	}
	put(0, 0, uint64(pageTableAddr+memory.PageSize)|ptePresent|pteWrite)
	for i := range identityGiB {
		put(1, i, uint64(directories)+uint64(i*memory.PageSize)|ptePresent|pteWrite)
		for j := range tableLength {
			addr := uint64(i*tableLength+j) * largePage
			put(2+i, j, addr|ptePresent|pteWrite|pteLarge)
		}
	}
	return mem.Write(pageTableAddr, tables[:])
}
