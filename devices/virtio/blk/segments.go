package blk

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// A segment of a discard or write-zeroes request (§5.2.6): first sector, number
// of sectors, flags.
const (
	segmentSize = 16
	// flagUnmap lets a write-zeroes request free the sectors.
	flagUnmap = 1
)

// span is a range of the image in bytes.
type span struct {
	offset, length uint64
	unmap          bool
}

// ranges sets up a discard or write-zeroes request. All of its segments are
// checked before anything is done.
func (r *request) ranges(d *Device, w work, negotiated bool) {
	if !negotiated {
		r.status = statusUnsupported
		return
	}
	n := r.chain.ReadLen - headerSize
	if d.config.ReadOnly || n == 0 || n%segmentSize != 0 || n/segmentSize > maxSegments {
		return
	}
	var list [maxSegments * segmentSize]byte
	r.chain.CopyOut(headerSize, list[:n])
	capacity := d.sectors.Load()
	most := uint64(maxDiscardSectors)
	if w == workZeroes {
		most = maxZeroesSectors
	}
	r.spans = r.spans[:0]
	for p := list[:n]; len(p) > 0; p = p[segmentSize:] {
		first := binary.LittleEndian.Uint64(p)
		count := uint64(binary.LittleEndian.Uint32(p[8:]))
		flags := binary.LittleEndian.Uint32(p[12:])
		if flags&^flagUnmap != 0 || w == workDiscard && flags != 0 {
			// §5.2.6.2: unknown flags, and unmap of what is unmapped.
			r.status = statusUnsupported
			return
		}
		if count > most || !inside(capacity, first, count) {
			return
		}
		if count > 0 {
			r.spans = append(r.spans, span{first * SectorSize, count * SectorSize, flags&flagUnmap != 0})
		}
	}
	r.work = w
	for _, s := range r.spans {
		r.extent += s.length
	}
}

// discard gives up the contents of the spans. A file system or device that
// cannot do that may leave them: discarding is a hint (§5.2.6.2).
func (m *image) discard(spans []span) unix.Errno {
	for _, s := range spans {
		if errno := m.discardSpan(s); errno != 0 {
			return errno
		}
	}
	return 0
}

func (m *image) discardSpan(s span) unix.Errno {
	if m.device {
		return discardDevice(m.buffered, s.offset, s.length)
	}
	return fallocate(m.buffered, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s)
}

// zero makes the spans read as zeros.
func (m *image) zero(spans []span) unix.Errno {
	for _, s := range spans {
		if errno := m.zeroSpan(s); errno != 0 {
			return errno
		}
	}
	return 0
}

func (m *image) zeroSpan(s span) unix.Errno {
	// Block devices understand the same modes.
	if s.unmap {
		if errno := fallocate(m.buffered, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s); !cannot(errno) {
			return errno
		}
	}
	if errno := fallocate(m.buffered, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, s); !cannot(errno) {
		return errno
	}
	return m.writeZeros(s)
}

// cannot tells whether the file system or device has no such operation, or not
// for such a range.
func cannot(errno unix.Errno) bool { return errno == unix.EOPNOTSUPP || errno == unix.EINVAL }

func fallocate(fd int, mode uint32, s span) unix.Errno {
	for {
		err := unix.Fallocate(fd, mode, int64(s.offset), int64(s.length))
		if !errors.Is(err, unix.EINTR) {
			return errnoOf(err)
		}
	}
}

// zeros is written where the file system has no better way.
var zeros [64 << 10]byte

func (m *image) writeZeros(s span) unix.Errno {
	for s.length > 0 {
		n := min(s.length, uint64(len(zeros)))
		if errno := writeAt(m.buffered, zeros[:n], s.offset); errno != 0 {
			return errno
		}
		s.offset += n
		s.length -= n
	}
	return 0
}

// writeAt writes all of p.
func writeAt(fd int, p []byte, offset uint64) unix.Errno {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, int64(offset))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return errnoOf(err)
		case n == 0:
			return unix.EIO
		default:
			p, offset = p[n:], offset+uint64(n)
		}
	}
	return 0
}

// readAt fills p, with flags of preadv2. The end of the file is an error.
func readAt(fd int, p []byte, offset uint64, flags int) unix.Errno {
	for len(p) > 0 {
		vector := [1]unix.Iovec{{Base: &p[0], Len: uint64(len(p))}}
		n, errno := preadv2(fd, vector[:], offset, flags)
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return errno
		case n == 0:
			return errShort
		default:
			p, offset = p[n:], offset+uint64(n)
		}
	}
	return 0
}

// errnoOf is the number of an error of package unix, 0 for nil.
func errnoOf(err error) unix.Errno {
	if err == nil {
		return 0
	}
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return unix.EIO
	}
	return errno
}
