package stream

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

// Memory that comes is new to the host as a rule. Written by way of its file, a page is
// neither cleared first nor mapped, and both cost more than the copy: a page is mapped
// when the guest gets to it. Where there is no such file, or none that can be written to,
// it is mapped and read into.

// fillPiece is how much is read before it is written, in bytes: whole pages, so that none
// has to be cleared for its other part, which are still in the processor's cache.
const fillPiece = 256 << 10

// fill reads what comes for a place into memory, and returns its checksum.
func (c *intake) fill(p place) (sum uint32, err error) {
	if !c.receiver.byFile() {
		if err := c.receiver.populate(p); err != nil {
			return 0, err
		}
		for rest := p.mem; len(rest) > 0; {
			n, err := c.in.Read(rest)
			if err != nil {
				return 0, noEOF(err)
			}
			sum = crc32.Update(sum, castagnoli(), rest[:n]) // while it is in the cache
			rest = rest[n:]
		}
		return sum, nil
	}
	if c.piece == nil {
		c.piece = make([]byte, fillPiece)
	}
	for at := uint64(0); at < uint64(len(p.mem)); {
		piece := c.piece[:min(fillPiece, uint64(len(p.mem))-at)]
		if _, err := io.ReadFull(c.in, piece); err != nil {
			return 0, noEOF(err)
		}
		sum = crc32.Update(sum, castagnoli(), piece)
		if err := c.receiver.write(p, at, piece); err != nil {
			return 0, err
		}
		at += uint64(len(piece))
	}
	return sum, nil
}

// put puts pages into memory.
func (r *Receiver) put(p place, pages []byte) error {
	if r.byFile() {
		return r.write(p, 0, pages)
	}
	if err := r.populate(p); err != nil {
		return err
	}
	copy(p.mem, pages)
	return nil
}

// byFile says whether memory has a file to write to. A file of huge pages cannot be.
func (r *Receiver) byFile() bool { return r.mem.FD() >= 0 && r.mem.HostPageSize() == memory.PageSize }

// write writes pages that begin so many bytes into a place.
func (r *Receiver) write(p place, at uint64, pages []byte) error {
	// Before there is content: whoever clears the pages has to know of it.
	r.content.add(p.first+at/memory.PageSize, uint64(len(pages))/memory.PageSize)
	for offset := p.first*memory.PageSize + at; len(pages) > 0; {
		n, err := unix.Pwrite(r.mem.FD(), pages, int64(offset))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return p.noMemory(err)
		}
		pages, offset = pages[n:], offset+uint64(n)
	}
	return nil
}

// populate has the host provide memory that was not used yet, which costs less in one
// piece than fault by fault, and fails here when there is none, not with a signal.
func (r *Receiver) populate(p place) error {
	if r.content.has(p.first, p.pages) {
		return nil
	}
	r.content.add(p.first, p.pages) // see write
	err := unix.Madvise(p.mem, unix.MADV_POPULATE_WRITE)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
		return nil // EINVAL: Linux before 5.14; the faults do it
	}
	return p.noMemory(err)
}

func (p place) noMemory(err error) error {
	return fmt.Errorf("the host has no memory for %d bytes of the guest at %#x: free some, or migrate to another host: %w", len(p.mem), uint64(p.gpa), err)
}
