package bootloader

import (
	"encoding/binary"

	"github.com/godwit-vmm/godwit/memory"
)

// zeroPage is Linux's struct boot_params (Documentation/arch/x86/
// zero-page.rst). The setup header of a bzImage lies at the same offsets in
// the kernel file, so one set of names serves both.
type zeroPage [memory.PageSize]byte

// Offsets in the zero page, from 0x1f1 to 0x268 also in a bzImage (boot.rst,
// "Details of Header Fields").
const (
	offRSDPAddr       = 0x070
	offExtRamdiskAddr = 0x0c0
	offExtRamdiskSize = 0x0c4
	offE820Entries    = 0x1e8
	offSetupSects     = 0x1f1
	offSysSize        = 0x1f4
	offBootFlag       = 0x1fe
	offJumpLength     = 0x201
	offHeaderMagic    = 0x202
	offVersion        = 0x206
	offLoaderType     = 0x210
	offLoadFlags      = 0x211
	offRamdiskAddr    = 0x218
	offRamdiskSize    = 0x21c
	offCmdlineAddr    = 0x228
	offInitrdAddrMax  = 0x22c
	offXLoadFlags     = 0x236
	offCmdlineSize    = 0x238
	offPayloadOffset  = 0x248
	offPayloadLength  = 0x24c
	offPrefAddress    = 0x258
	offInitSize       = 0x260
	offE820Table      = 0x2d0
)

const (
	bootFlag    = 0xaa55
	headerMagic = 0x53726448 // "HdrS"
	// setupHeaderMax is where the zero page goes on with other fields
	// behind the setup header.
	setupHeaderMax = 0x290
	// loaderUndefined is the loader type of one without an assigned ID.
	loaderUndefined = 0xff
	loadedHigh      = 1 << 0 // load flag: the kernel belongs at 1 MiB or above
	// Extended load flags.
	xlfKernel64   = 1 << 0 // has the 64-bit entry point
	xlfAbove4G    = 1 << 1 // zero page, command line and initrd may be above 4 GiB
	e820EntrySize = 20
	e820Max       = 128
)

func (z *zeroPage) u16(off int) uint16      { return binary.LittleEndian.Uint16(z[off:]) }
func (z *zeroPage) u32(off int) uint32      { return binary.LittleEndian.Uint32(z[off:]) }
func (z *zeroPage) u64(off int) uint64      { return binary.LittleEndian.Uint64(z[off:]) }
func (z *zeroPage) put16(off int, x uint16) { binary.LittleEndian.PutUint16(z[off:], x) }
func (z *zeroPage) put32(off int, x uint32) { binary.LittleEndian.PutUint32(z[off:], x) }
func (z *zeroPage) put64(off int, x uint64) { binary.LittleEndian.PutUint64(z[off:], x) }

// vmlinuxSetup is the setup header for a Linux kernel whose file has none. The
// kernel proper reads only what the loader writes, and believes it when magic
// and version are there.
func vmlinuxSetup() (z zeroPage) {
	z.put16(offBootFlag, bootFlag)
	z.put32(offHeaderMagic, headerMagic)
	z.put16(offVersion, minProtocol)
	z[offLoadFlags] = loadedHigh
	return z
}

// writeZeroPage completes the kernel's setup header and puts the zero page
// where [enter64] points the kernel to.
func writeZeroPage(mem *memory.Guest, k *kernel, b *bootInfo) error {
	z := k.setup
	z[offLoaderType] = loaderUndefined
	z.put32(offCmdlineAddr, uint32(cmdlineAddr))
	z.put32(offRamdiskAddr, uint32(b.initrd.Start))
	z.put32(offRamdiskSize, uint32(b.initrd.Size))
	z.put32(offExtRamdiskAddr, uint32(b.initrd.Start>>32))
	z.put32(offExtRamdiskSize, uint32(b.initrd.Size>>32))
	z.put64(offRSDPAddr, uint64(b.rsdp))
	// The memory map is a handful of ranges, far below e820Max.
	z[offE820Entries] = uint8(min(len(b.memoryMap), e820Max))
	for i, e := range b.memoryMap[:z[offE820Entries]] {
		off := offE820Table + i*e820EntrySize
		z.put64(off, uint64(e.Start))
		z.put64(off+8, e.Size)
		z.put32(off+16, e.kind)
	}
	return mem.Write(zeroPageAddr, z[:])
}
