package memory

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Discard gives the memory of the n bytes at gpa, which are RAM, back to the
// host. The guest finds zeros there, and the host spends memory again when
// somebody touches it. Only whole host pages (HostPageSize) are given back; it
// returns how many bytes they are.
//
// It is safe while the guest, a device or the kernel use the same memory: they
// find the old bytes or zeros. But an access to a discarded huge page fails
// fatally if the host's pool has run out meanwhile: see Populate.
func (g *Guest) Discard(gpa GPA, n uint64) (uint64, error) {
	r := g.find(gpa, n)
	if r == nil {
		return 0, outside(gpa, n)
	}
	first, end := g.wholePages(r, gpa, n)
	if first >= end {
		return 0, nil
	}
	if g.Pager() != NoPager {
		given, err := g.discardPaged(r.Mem[first:end])
		if given > 0 {
			g.MarkDirty(r.Start+GPA(first), given)
		}
		return given, err
	}
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	var err error
	if g.private {
		err = g.discardPrivate(r.Mem[first:end])
	} else {
		err = g.fallocate(punch, r.Offset+first, end-first)
	}
	if err != nil {
		return 0, fmt.Errorf("give %d bytes at guest address %#x back to the host: %w", n, uint64(gpa), err)
	}
	// The content has changed, for whoever has a copy of it.
	g.MarkDirty(r.Start+GPA(first), end-first)
	return end - first, nil
}

// Populate has the host provide memory for the n bytes at gpa, which are RAM.
// For huge pages that were discarded it is the only safe way back: the pool may
// be empty, and where this returns an error an access would raise SIGBUS.
func (g *Guest) Populate(gpa GPA, n uint64) error {
	r := g.find(gpa, n)
	if r == nil {
		return outside(gpa, n)
	}
	if n == 0 || g.private {
		return nil // small pages of private memory come when they are touched
	}
	if g.Pager() != NoPager {
		// A page of the pool would take the place of that which is to come.
		off := uint64(gpa - r.Start)
		return Await(r.Mem[off : off+n])
	}
	if err := g.fallocate(0, r.Offset+uint64(gpa-r.Start), n); err != nil {
		return fmt.Errorf("get memory from the host for %d bytes at guest address %#x: %w", n, uint64(gpa), err)
	}
	return nil
}

// HostPageSize is the size in bytes of the host's pages that hold RAM. With
// huge pages it is larger than PageSize.
func (g *Guest) HostPageSize() uint64 { return g.hostPageSize }

// wholePages are the host pages that lie in the n bytes at gpa wholly, as
// offsets into the region. Regions begin at a multiple of the host page size.
func (g *Guest) wholePages(r *Region, gpa GPA, n uint64) (first, end uint64) {
	mask := g.hostPageSize - 1
	off := uint64(gpa - r.Start)
	return (off + mask) &^ mask, (off + n) &^ mask
}

func (g *Guest) fallocate(mode uint32, offset, n uint64) error {
	for {
		err := unix.Fallocate(g.fd, mode, int64(offset), int64(n))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
