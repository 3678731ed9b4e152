// Package memory is the guest physical address space: where RAM lies, the
// memfd-backed regions that hold it, and the only way for the rest of the
// program to read and write it.
//
// Every access is bounds-checked with arithmetic that cannot overflow, so an
// address or length that a guest made up yields an error and nothing else. The
// guest may change memory while it is read: callers copy what they are going
// to check into local variables once.
package memory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrOutside is wrapped by every error about an address that is not in RAM.
var ErrOutside = errors.New("not guest RAM")

// Options say what memory a guest gets.
type Options struct {
	// Size of the RAM in bytes, a multiple of PageSize.
	Size uint64
	// HugePages backs RAM by 2 MiB pages of the hugetlb pool, which the
	// administrator reserved. Size must then be a multiple of 2 MiB.
	HugePages bool
	// Name shows in /proc/PID/maps as memfd:Name.
	Name string
	// Saved is what the RAM of a restored guest holds at first. A guest with
	// huge pages gets a copy of it, any other a private mapping; nil is a guest
	// that has not lived yet. Later extents win over earlier ones.
	Saved []Extent
	// Passed is the memory of a guest that another process has, as Guest.Share gave it;
	// nil is new memory. It is used with the size and pages that it was made with. The
	// caller may close it when New has returned. See Guest.Adopt.
	Passed *os.File
}

// Region is one contiguous piece of RAM and its mapping in this process.
type Region struct {
	Range
	// Mem is the whole region. Slicing it is unchecked access; outside
	// this package only code that hands the region to KVM or to the
	// kernel uses it.
	Mem []byte
	// Offset is where the region starts in the memfd. The pages of the
	// dirty bitmap are numbered by memfd offset.
	Offset uint64
}

// Guest is the memory of one guest. Its methods may be called from any
// goroutine; Close only after every user of the memory has stopped.
type Guest struct {
	regions []Region
	fd      int
	size    uint64
	dirty   *Bitmap
	// private is set for memory that is not the memfd's but a private mapping
	// of saved memory, or of a memfd that was passed.
	private bool
	// passed is set until a memfd that was passed is adopted.
	passed bool
	// saved are the extents of a private mapping, and files the descriptors that
	// they have, by those that they were given with.
	saved []Extent
	files map[*os.File]*os.File

	hostPageSize uint64
	// pager is a Pager.
	pager atomic.Int32
}

// hugePageSize is the size of the pages that Options.HugePages asks for.
const hugePageSize = 2 << 20

// New reserves the memory of a guest. No page is touched: the host spends
// memory on a page when the guest first uses it.
func New(o Options) (*Guest, error) {
	ranges, err := LayoutRAM(o.Size)
	if err != nil {
		return nil, err
	}
	if o.HugePages && o.Size%hugePageSize != 0 {
		return nil, fmt.Errorf("guest memory of %d bytes with huge pages: want a multiple of 2 MiB", o.Size)
	}
	if o.Passed != nil {
		return newPassed(o, ranges)
	}
	if o.Saved != nil && !o.HugePages {
		g := &Guest{fd: -1, size: o.Size, dirty: NewBitmap(o.Size / PageSize), hostPageSize: PageSize, private: true}
		if err := g.mapSaved(ranges, o.Saved); err != nil {
			return nil, errors.Join(err, g.Close())
		}
		return g, nil
	}
	name := o.Name
	if name == "" {
		name = "guest"
	}
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	if o.HugePages {
		flags |= unix.MFD_HUGETLB | unix.MFD_HUGE_2MB
	}
	fd, err := unix.MemfdCreate(name, flags)
	if err != nil {
		return nil, fmt.Errorf("memfd for guest memory: %w", err)
	}
	g := unmapped(o, fd)
	err = g.fix()
	if err == nil {
		err = g.mapRegions(ranges, o.HugePages)
	}
	if err == nil {
		err = g.copySaved(o.Saved)
	}
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// unmapped is a guest with a memfd, which is not mapped yet.
func unmapped(o Options, fd int) *Guest {
	g := &Guest{fd: fd, size: o.Size, dirty: NewBitmap(o.Size / PageSize), hostPageSize: PageSize}
	if o.HugePages {
		g.hostPageSize = hugePageSize
	}
	return g
}

// fix gives the memfd its size, for good.
func (g *Guest) fix() error {
	if err := unix.Ftruncate(g.fd, int64(g.size)); err != nil {
		return fmt.Errorf("guest memory of %d MiB: %w", g.size>>20, err)
	}
	// A memfd that cannot shrink cannot turn an access into a SIGBUS,
	// whoever else gets hold of the descriptor.
	seals := unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(g.fd), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal guest memory: %w", err)
	}
	return nil
}

func (g *Guest) mapRegions(ranges []Range, huge bool) error {
	var offset uint64
	for _, r := range ranges {
		flags := unix.MAP_SHARED
		if !huge {
			// The hugetlb pool reserves at mmap, so that a guest
			// which does not fit fails here and not by SIGBUS.
			flags |= unix.MAP_NORESERVE
		}
		mem, err := unix.Mmap(g.fd, int64(offset), int(r.Size), unix.PROT_READ|unix.PROT_WRITE, flags)
		if err != nil {
			if huge && errors.Is(err, unix.ENOMEM) {
				return fmt.Errorf("guest memory of %d MiB does not fit the huge page pool: raise /proc/sys/vm/nr_hugepages: %w", g.size>>20, err)
			}
			return fmt.Errorf("map %d MiB of guest memory: %w", r.Size>>20, err)
		}
		g.regions = append(g.regions, Region{Range: r, Mem: mem, Offset: offset})
		offset += r.Size
		g.advise(mem)
	}
	return nil
}

// advise tells the kernel what a mapping is for.
func (g *Guest) advise(mem []byte) {
	if g.hostPageSize == PageSize {
		// Transparent huge pages are a wish: hosts that do not
		// grant them to shared memory answer EINVAL.
		_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	}
	// Guest memory does not belong in a core dump of the VMM.
	_ = unix.Madvise(mem, unix.MADV_DONTDUMP)
}

// copySaved fills the memory.
func (g *Guest) copySaved(extents []Extent) error {
	for _, e := range extents {
		if err := e.check(g.size); err != nil {
			return err
		}
		for i := range g.regions {
			r := &g.regions[i]
			first, end := max(e.Offset, r.Offset), min(e.Offset+e.Length, r.Offset+r.Size)
			if first >= end {
				continue
			}
			if _, err := e.File.ReadAt(r.Mem[first-r.Offset:end-r.Offset], int64(first)); err != nil {
				return fmt.Errorf("read saved memory at %#x of %s: %w", first, e.File.Name(), err)
			}
		}
	}
	return nil
}

// Close unmaps and frees the memory. Views that were handed out are invalid.
func (g *Guest) Close() error {
	var errs []error
	for _, r := range g.regions {
		errs = append(errs, unix.Munmap(r.Mem))
	}
	g.regions = nil
	for _, f := range g.files {
		errs = append(errs, f.Close())
	}
	g.files, g.saved = nil, nil
	if g.fd >= 0 {
		errs = append(errs, unix.Close(g.fd))
		g.fd = -1
	}
	return errors.Join(errs...)
}

// Size is the amount of RAM in bytes.
func (g *Guest) Size() uint64 { return g.size }

// FD is the memfd that backs RAM; Region.Offset says what lies where in it. It is -1
// for restored memory, which is a private mapping.
func (g *Guest) FD() int { return g.fd }

// Regions are the pieces of RAM in rising order of address.
func (g *Guest) Regions() []Region { return g.regions }

// Ranges are the addresses of the RAM in rising order.
func (g *Guest) Ranges() []Range {
	ranges := make([]Range, len(g.regions))
	for i, r := range g.regions {
		ranges[i] = r.Range
	}
	return ranges
}

// Dirty has a bit for each page that this process wrote, numbered by memfd
// offset. KVM's dirty log does not see those writes.
func (g *Guest) Dirty() *Bitmap { return g.dirty }

// find returns the region that holds all of the n bytes at gpa. There are at
// most two regions, and most accesses go to the first.
func (g *Guest) find(gpa GPA, n uint64) *Region {
	for i := range g.regions {
		if g.regions[i].Contains(gpa, n) {
			return &g.regions[i]
		}
	}
	return nil
}

func outside(gpa GPA, n uint64) error {
	return fmt.Errorf("%d bytes at guest address %#x: %w", n, uint64(gpa), ErrOutside)
}

// Contains tells whether the n bytes at gpa are RAM in one piece.
func (g *Guest) Contains(gpa GPA, n uint64) bool { return g.find(gpa, n) != nil }

// View returns the n bytes at gpa for reading. The guest may change them at
// any time.
func (g *Guest) View(gpa GPA, n uint64) ([]byte, error) {
	r := g.find(gpa, n)
	if r == nil {
		return nil, outside(gpa, n)
	}
	off := uint64(gpa - r.Start)
	v := r.Mem[off : off+n : off+n]
	if err := g.Await(v); err != nil {
		return nil, err
	}
	return v, nil
}

// Slice returns the n bytes at gpa for writing. The caller calls MarkDirty
// after it wrote, also when the kernel wrote on its behalf.
func (g *Guest) Slice(gpa GPA, n uint64) ([]byte, error) { return g.View(gpa, n) }

// MarkDirty records that this process wrote the n bytes at gpa.
func (g *Guest) MarkDirty(gpa GPA, n uint64) {
	r := g.find(gpa, n)
	if r == nil || n == 0 {
		return
	}
	first := (r.Offset + uint64(gpa-r.Start)) / PageSize
	last := (r.Offset + uint64(gpa-r.Start) + n - 1) / PageSize
	g.dirty.Set(first, last-first+1)
}

// Read fills p from gpa.
func (g *Guest) Read(gpa GPA, p []byte) error {
	v, err := g.View(gpa, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(p, v)
	return nil
}

// Write copies p to gpa.
func (g *Guest) Write(gpa GPA, p []byte) error {
	v, err := g.View(gpa, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(v, p)
	g.MarkDirty(gpa, uint64(len(p)))
	return nil
}

// Uint16, Uint32 and Uint64 read a little-endian number. The access is not
// atomic; see LoadUint32 for one that is.
func (g *Guest) Uint16(gpa GPA) (uint16, error) {
	v, err := g.View(gpa, 2)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint16(v), nil
}

// Uint32 reads a little-endian 32-bit number.
func (g *Guest) Uint32(gpa GPA) (uint32, error) {
	v, err := g.View(gpa, 4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(v), nil
}

// Uint64 reads a little-endian 64-bit number.
func (g *Guest) Uint64(gpa GPA) (uint64, error) {
	v, err := g.View(gpa, 8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(v), nil
}

// PutUint16 writes a little-endian 16-bit number.
func (g *Guest) PutUint16(gpa GPA, x uint16) error {
	var p [2]byte
	binary.LittleEndian.PutUint16(p[:], x)
	return g.Write(gpa, p[:])
}

// PutUint32 writes a little-endian 32-bit number.
func (g *Guest) PutUint32(gpa GPA, x uint32) error {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], x)
	return g.Write(gpa, p[:])
}

// PutUint64 writes a little-endian 64-bit number.
func (g *Guest) PutUint64(gpa GPA, x uint64) error {
	var p [8]byte
	binary.LittleEndian.PutUint64(p[:], x)
	return g.Write(gpa, p[:])
}
