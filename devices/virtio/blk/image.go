package blk

import (
	"errors"
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"
)

// physicalBlock is what the guest is told to align to on an image file: a page
// of the page cache and a block of most file systems. It is the same for all
// of them, so that a guest may be moved between hosts.
const physicalBlock = 4096

// image is the file behind a disk.
type image struct {
	path   string
	device bool // it is a block device
	block  geometry

	// buffered goes through the page cache. direct is another description of
	// the same file that does not, or -1. The lock is on buffered.
	buffered, direct int
	// memoryAlign and offsetAlign are what O_DIRECT wants of each buffer, and
	// of offset and lengths.
	memoryAlign, offsetAlign uint64
}

// geometry has sizes in bytes, logical and physical those of a block.
type geometry struct {
	logical, physical, optimal uint32
}

// exponent is log2 of the logical blocks in a physical one.
func (g geometry) exponent() uint8 { return uint8(bits.Len32(g.physical/g.logical) - 1) }

// minIO is the preferred granularity in logical blocks.
func (g geometry) minIO() uint16 { return uint16(min(g.physical/g.logical, 1<<16-1)) }

// openImage opens the file, and locks it unless it is another one's for now.
func openImage(c *Config) (_ *image, err error) {
	path, readOnly := c.Path, c.ReadOnly || c.overlaid()
	if c.Interim != "" {
		path = c.Interim
	}
	var st unix.Stat_t
	// Before it is opened, which with a FIFO or a tape might take long.
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("look at the image: %w", err)
	}
	m := &image{path: path, buffered: -1, direct: -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFBLK:
		m.device = true
	default:
		return nil, errors.New("the image is neither a regular file nor a block device")
	}
	flags := unix.O_RDWR | unix.O_CLOEXEC
	if readOnly {
		flags = unix.O_RDONLY | unix.O_CLOEXEC
	}
	if err := m.openBuffered(flags, c.Inactive); err != nil {
		return nil, err
	}
	m.path = c.Path
	if !c.Inactive {
		if err := m.lock(readOnly); err != nil {
			return nil, err
		}
	}
	if err := m.learnGeometry(); err != nil {
		return nil, err
	}
	if c.Direct {
		return m, m.openDirect(flags)
	}
	return m, nil
}

// lock takes the lock on the file.
func (m *image) lock(readOnly bool) error {
	if err := lockFile(m.buffered, m.path, readOnly); err != nil {
		return fmt.Errorf("%w: stop that, let both open it read-only, or give each an overlay", err)
	}
	return nil
}

func (m *image) openBuffered(flags int, inactive bool) (err error) {
	if m.device && flags&unix.O_ACCMODE != unix.O_RDONLY && !inactive {
		// Keeps away what is mounted, or used by the host in other ways
		// that know nothing of file locks.
		flags |= unix.O_EXCL
	}
	m.buffered, err = openFile(m.path, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("the block device is mounted or in use by the host: unmount it, or open it read-only: %w", err)
	}
	if err != nil {
		return fmt.Errorf("open the image: %w", err)
	}
	return nil
}

// openDirect opens the file, which is open and locked, for direct I/O.
func (m *image) openDirect(flags int) (err error) {
	// By the descriptor: the name may stand for another file by now.
	self := fmt.Sprintf("/proc/self/fd/%d", m.buffered)
	m.direct, err = openFile(self, flags|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("the file system has no direct I/O, leave out the option: %w", err)
	}
	if err != nil {
		return fmt.Errorf("open the image for direct I/O: %w", err)
	}
	// The strictest alignment there is, for kernels before 6.1, which cannot
	// tell.
	m.memoryAlign, m.offsetAlign = physicalBlock, physicalBlock
	var stx unix.Statx_t
	err = unix.Statx(m.direct, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &stx)
	if err != nil || stx.Mask&unix.STATX_DIOALIGN == 0 {
		return nil
	}
	if stx.Dio_mem_align == 0 || stx.Dio_offset_align == 0 {
		return errors.New("the file system has no direct I/O for this file, leave out the option")
	}
	m.memoryAlign, m.offsetAlign = uint64(stx.Dio_mem_align), uint64(stx.Dio_offset_align)
	return nil
}

func openFile(path string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Open(path, flags, mode)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// learnGeometry asks a block device for its block sizes. The blocks of a file
// are those of the disk that it is an image of, and that has always 512.
func (m *image) learnGeometry() error {
	m.block = geometry{logical: SectorSize, physical: physicalBlock}
	if !m.device {
		return nil
	}
	for _, ask := range []struct {
		request uint
		answer  *uint32
	}{{unix.BLKSSZGET, &m.block.logical}, {unix.BLKPBSZGET, &m.block.physical}, {unix.BLKIOOPT, &m.block.optimal}} {
		n, err := unix.IoctlGetUint32(m.buffered, ask.request)
		if err != nil {
			return fmt.Errorf("ask the block device for its block size: %w", err)
		}
		*ask.answer = n
	}
	g := &m.block
	if bits.OnesCount32(g.logical) != 1 || g.logical < SectorSize || bits.OnesCount32(g.physical) != 1 || g.physical < g.logical {
		return fmt.Errorf("the block device has blocks of %d bytes, physical ones of %d, want powers of two from %d", g.logical, g.physical, SectorSize)
	}
	return nil
}

// size asks for the size in bytes, which is a multiple of SectorSize.
func (m *image) size() (uint64, error) {
	size, err := m.rawSize()
	switch {
	case err != nil:
		return 0, fmt.Errorf("ask for the size of the image: %w", err)
	case size == 0:
		return 0, errors.New("the image is empty: give it a size, for example with truncate -s 10G")
	case size%SectorSize != 0:
		return 0, fmt.Errorf("the image has %d bytes, which is no multiple of %d: round it up with truncate -s %%%d, or check that it is a raw image",
			size, SectorSize, SectorSize)
	}
	return size, nil
}

func (m *image) rawSize() (uint64, error) {
	if m.device {
		return deviceSize(m.buffered)
	}
	var st unix.Stat_t
	if err := unix.Fstat(m.buffered, &st); err != nil {
		return 0, err
	}
	return uint64(max(st.Size, 0)), nil
}

// descriptor chooses the descriptor for a transfer. What direct I/O cannot take
// goes through the page cache, which the kernel keeps coherent with it.
func (m *image) descriptor(offset uint64, vectors []unix.Iovec) int {
	if m.direct < 0 {
		return m.buffered
	}
	memory, lengths := m.memoryAlign-1, m.offsetAlign-1
	if offset&lengths != 0 || !aligned(vectors, memory, lengths) {
		return m.buffered
	}
	return m.direct
}

func (m *image) close() error {
	var err error
	for _, fd := range []int{m.direct, m.buffered} {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	m.direct, m.buffered = -1, -1
	return err
}
