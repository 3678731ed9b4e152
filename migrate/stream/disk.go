package stream

import (
	"errors"
	"fmt"
	"io"

	"github.com/godwit-vmm/godwit/memory"
)

// A disk that moves with its guest has a connection of its own, so that what is sent
// later arrives later. The frames are those of memory, with offset and length in bytes of
// the disk. PAGE and ZSTD have its contents, ZERO says that a range is zeros. A barrier is
// confirmed when everything before it is durable. Two frames are for disks alone:
//
// HASH asks which blocks of a range the receiver has already, from a migration that
// failed: behind the header it has a SHA-256 of each DiskBlock, of which the last may be
// shorter. The receiver answers DIFF, with the same range and a bit for each block that is
// another one there (little endian).

// The kinds of frame of disks alone.
const (
	kindHash kind = 'H' | 'A'<<8 | 'S'<<16 | 'H'<<24
	kindDiff kind = 'D' | 'I'<<8 | 'F'<<16 | 'F'<<24
)

const (
	// DiskBlock is the most of a disk's contents that goes in one piece, in bytes.
	DiskBlock = maxPayload
	// SectorSize is what ranges of a disk are aligned to.
	SectorSize = 512
	// maxHashed is how many blocks a HASH is about, at most.
	maxHashed = 64
	hashSize  = 32
)

// MaxDisk is the size of the largest disk, in bytes.
const MaxDisk = 1 << 60

// DiskTarget is a disk at its destination. Its methods are called one at a time.
type DiskTarget interface {
	io.ReaderAt
	io.WriterAt
	// Zero makes a range zeros, whatever is there.
	Zero(offset, length uint64) error
	// Sync makes durable what was written.
	Sync() error
}

// errRange is wrapped by errors about frames for what is not there.
var errRange = errors.New("not sectors of this disk")

// checkRange bounds what a frame says of a disk of a size.
func checkRange(h header, size uint64) error {
	if h.offset%SectorSize != 0 || h.length%SectorSize != 0 || h.length == 0 || h.offset > size || h.length > size-h.offset {
		return fmt.Errorf("frame %v of %d bytes for %#x: %w, which has %d bytes", h.kind, h.length, h.offset, errRange, size)
	}
	return nil
}

// sameSort is how many bytes from the beginning of p, which is sectors, are of one sort:
// zeros, or something else. It looks at pages, of which the last may be shorter.
func sameSort(p []byte) (n int, zero bool) {
	page := func(p []byte) []byte { return p[:min(len(p), memory.PageSize)] }
	isZero := func(p []byte) bool { return string(p) == string(zeroPage[:len(p)]) }
	first := page(p)
	n, zero = len(first), isZero(first)
	for n < len(p) {
		next := page(p[n:])
		if isZero(next) != zero {
			break
		}
		n += len(next)
	}
	return n, zero
}
