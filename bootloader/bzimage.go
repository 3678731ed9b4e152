package bootloader

import (
	"io"

	"github.com/godwit-vmm/godwit/memory"
)

const (
	// minProtocol is the boot protocol that brought the 64-bit entry flag
	// (Linux 3.8).
	minProtocol = 0x020c
	// entry64 is where the 64-bit entry point lies in the loaded kernel.
	entry64 = 0x200
	sector  = 512
	// defaultSetupSects stands for a setup_sects of 0.
	defaultSetupSects = 4
)

// parseBzImage reads the setup header of a bzImage. head is the start of the
// file, setupHeaderMax bytes.
func parseBzImage(f *File, head []byte) (*kernel, error) {
	k := &kernel{file: f, protocol: Linux64}
	z := &k.setup
	if err := copySetupHeader(z, f, head); err != nil {
		return nil, err
	}
	if z[offLoadFlags]&loadedHigh == 0 {
		return nil, f.errorf("a zImage for low memory: want a bzImage")
	}
	if z.u16(offXLoadFlags)&xlfKernel64 == 0 {
		return nil, f.errorf("a 32-bit kernel, or one without the 64-bit entry point: want a 64-bit kernel")
	}
	setup, body := z.body()
	if body <= entry64 || !f.contains(setup, body) {
		return nil, f.errorf("truncated: the header tells of %d bytes", setup+body)
	}
	// The kernel runs at its preferred address whatever the place it was
	// loaded to, so that is the place to load it. From there on it takes
	// init_size bytes before it looks at the memory map.
	load := memory.GPA(z.u64(offPrefAddress))
	k.entry = load + entry64
	k.segments = []segment{{
		Range:    memory.Range{Start: load, Size: max(uint64(z.u32(offInitSize)), body)},
		offset:   setup,
		fileSize: body,
	}}
	k.cmdlineMax = uint64(z.u32(offCmdlineSize))
	k.initrdMax = memory.GPA(z.u32(offInitrdAddrMax))
	k.initrdHigh = z.u16(offXLoadFlags)&xlfAbove4G != 0
	return k, nil
}

// copySetupHeader copies the setup header of the file into the zero page, once
// it is known to be of a version whose fields this package understands.
func copySetupHeader(z *zeroPage, f *File, head []byte) error {
	copy(z[offSetupSects:setupHeaderMax], head[offSetupSects:])
	if z.u32(offHeaderMagic) != headerMagic {
		return f.errorf("not a kernel: a boot sector without a Linux setup header")
	}
	if v := z.u16(offVersion); v < minProtocol {
		return f.errorf("boot protocol %d.%02d is too old: want %d.%02d (Linux 3.8) or later",
			v>>8, v&0xff, minProtocol>>8, minProtocol&0xff)
	}
	// The header ends where the jump at its start leads to; what follows
	// is code and stays out of the zero page.
	end := offHeaderMagic + int(z[offJumpLength])
	if end < offInitSize+4 || end > setupHeaderMax {
		return f.errorf("setup header ends at %#x: want an end between %#x and %#x", end, offInitSize+4, setupHeaderMax)
	}
	clear(z[end:])
	return nil
}

// body says where the protected-mode kernel lies in the file: its offset and
// its size in bytes.
func (z *zeroPage) body() (offset, size uint64) {
	sects := uint64(z[offSetupSects])
	if sects == 0 {
		sects = defaultSetupSects
	}
	return (sects + 1) * sector, uint64(z.u32(offSysSize)) * 16
}

// Payload returns the compressed kernel proper inside a bzImage (boot.rst,
// payload_offset). Its last four bytes are the size of what it decompresses
// to. For anything but a whole bzImage it returns an error.
func Payload(f *File) (*io.SectionReader, error) {
	k, err := parseKernel(f)
	if err != nil {
		return nil, err
	}
	if k.setup.u32(offPayloadLength) == 0 {
		return nil, f.errorf("no compressed payload: want a bzImage")
	}
	start, size := k.setup.body()
	off, n := uint64(k.setup.u32(offPayloadOffset)), uint64(k.setup.u32(offPayloadLength))
	if off > size || n > size-off {
		return nil, f.errorf("payload of %d bytes at offset %d does not lie in the %d bytes of the kernel", n, off, size)
	}
	return io.NewSectionReader(f.Content, int64(start+off), int64(n)), nil
}
