package memory

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Extent is a piece of saved memory: Length bytes, which are RAM from Offset on
// (see Region.Offset) and lie in File at the same offset. Both are multiples of
// PageSize.
type Extent struct {
	Offset, Length uint64
	File           *os.File
}

// mapSaved maps the regions privately: pages are the files' until somebody writes
// to them, and of all guests that come from the same files the host has them once.
// RAM that no extent has is zero. The caller may close the files afterwards; they must
// not be cut or changed for as long as the guest lives.
func (g *Guest) mapSaved(ranges []Range, extents []Extent) error {
	const private = unix.MAP_PRIVATE | unix.MAP_NORESERVE
	var offset uint64
	for _, r := range ranges {
		mem, err := unix.Mmap(-1, 0, int(r.Size), unix.PROT_READ|unix.PROT_WRITE, private|unix.MAP_ANONYMOUS)
		if err != nil {
			return fmt.Errorf("map %d MiB of guest memory: %w", r.Size>>20, err)
		}
		g.regions = append(g.regions, Region{Range: r, Mem: mem, Offset: offset})
		offset += r.Size
	}
	for _, e := range extents {
		if err := e.check(g.size); err != nil {
			return err
		}
		if err := g.keep(e); err != nil {
			return err
		}
		for i := range g.regions {
			r := &g.regions[i]
			first, end := max(e.Offset, r.Offset), min(e.Offset+e.Length, r.Offset+r.Size)
			if first >= end {
				continue
			}
			err := mapFixed(r.Mem[first-r.Offset:end-r.Offset], int(e.File.Fd()), first, private)
			if err != nil {
				return fmt.Errorf("map %d bytes of saved memory at %#x of %s: %w", end-first, first, e.File.Name(), err)
			}
		}
	}
	for _, r := range g.regions {
		_ = unix.Madvise(r.Mem, unix.MADV_DONTDUMP)
	}
	return nil
}

// keep keeps a descriptor of the extent's file for Present; the extents of one file
// share it.
func (g *Guest) keep(e Extent) error {
	file, ok := g.files[e.File]
	if !ok {
		fd, err := unix.FcntlInt(e.File.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("keep %s open: %w", e.File.Name(), err)
		}
		file = os.NewFile(uintptr(fd), e.File.Name())
		if g.files == nil {
			g.files = make(map[*os.File]*os.File)
		}
		g.files[e.File] = file
	}
	g.saved = append(g.saved, Extent{e.Offset, e.Length, file})
	return nil
}

// addressOf is where memory lies in this process.
func addressOf(mem []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(mem))) }

// check compares the extent with the memory's and the file's size: an access behind
// the end of a file would be a SIGBUS.
func (e Extent) check(size uint64) error {
	if e.Offset%PageSize != 0 || e.Length%PageSize != 0 || e.Offset > size || e.Length > size-e.Offset {
		return fmt.Errorf("%d bytes of saved memory at %#x are not pages of a guest of %d bytes", e.Length, e.Offset, size)
	}
	info, err := e.File.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || uint64(info.Size()) < e.Offset+e.Length {
		return fmt.Errorf("%s has %d bytes, want %d of saved memory in a regular file", e.File.Name(), info.Size(), e.Offset+e.Length)
	}
	return nil
}

// mapFixed replaces the pages of mem.
func mapFixed(mem []byte, fd int, offset uint64, flags int) error {
	at := unsafe.Pointer(unsafe.SliceData(mem))
	_, err := unix.MmapPtr(fd, int64(offset), at, uintptr(len(mem)), unix.PROT_READ|unix.PROT_WRITE, flags|unix.MAP_FIXED)
	return err
}

// discardPrivate gives pages of a restored guest back to the host. The file's pages
// would come back where they only were dropped, and the guest may rely on zeros.
func (g *Guest) discardPrivate(mem []byte) error {
	err := mapFixed(mem, -1, 0, unix.MAP_PRIVATE|unix.MAP_NORESERVE|unix.MAP_ANONYMOUS)
	if err == nil {
		_ = unix.Madvise(mem, unix.MADV_DONTDUMP)
	}
	if errors.Is(err, unix.ENOMEM) {
		return fmt.Errorf("the guest's memory is in too many pieces: %w", err)
	}
	return err
}
