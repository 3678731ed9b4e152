package blk

import (
	"time"

	"golang.org/x/sys/unix"
)

// run does the work of a request on the calling thread, however long it takes.
func (r *request) run() unix.Errno {
	if r.overlay != nil {
		return r.overlay.run(r)
	}
	errno := r.image.run(r)
	if errno == 0 && r.durable && r.work != workWrite {
		errno = r.image.sync()
	}
	return errno
}

func (m *image) run(r *request) unix.Errno {
	switch r.work {
	case workRead:
		return r.move(0)
	case workWrite:
		return r.move(r.writeFlags())
	case workFlush:
		return m.sync()
	case workDiscard:
		return m.discard(r.spans)
	case workZeroes:
		return m.zero(r.spans)
	}
	return 0
}

// sync makes all writes durable that are complete.
func (m *image) sync() unix.Errno { return fdatasync(m.buffered) }

func fdatasync(fd int) unix.Errno {
	for {
		if errno := errnoOf(unix.Fdatasync(fd)); errno != unix.EINTR {
			return errno
		}
	}
}

// writeFlags are the flags of a blocking write.
func (r *request) writeFlags() int {
	if r.durable {
		return unix.RWF_DSYNC
	}
	return 0
}

// left is how many bytes are still to be moved.
func (r *request) left() uint32 { return r.length - r.done }

// place says in which file, and where, the next bytes of a read or write are,
// and how many of those that are left are there in one piece.
func (r *request) place() (m *image, offset uint64, n uint32) {
	if r.overlay != nil {
		return r.overlay.place(r)
	}
	return r.image, r.offset, r.left()
}

// inPlace tells whether the request is a system call on the file where its bytes
// are, and nothing else.
func (r *request) inPlace() bool {
	return r.overlay == nil || r.work == workRead ||
		!r.durable && r.overlay.all(clustersOf(span{offset: r.offset, length: uint64(r.left())}))
}

// move reads or writes what is left.
func (r *request) move(flags int) unix.Errno {
	call := preadv2
	if r.work == workWrite {
		call = pwritev2
	}
	for r.left() > 0 {
		m, offset, piece := r.place()
		vectors, cut := r.vectors, uint64(0)
		if piece < r.left() {
			vectors, cut = clip(vectors, uint64(piece))
		}
		n, errno := call(m.descriptor(offset, vectors), vectors, offset, flags)
		if cut > 0 {
			vectors[len(vectors)-1].Len += cut
		}
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return errno
		case n == 0:
			return errShort
		default:
			r.moved(uint32(n))
		}
	}
	return 0
}

// errShort is for an image that has become shorter than the disk.
const errShort = unix.EIO

// moved notes that n bytes more have been read or written.
func (r *request) moved(n uint32) {
	r.done += n
	r.offset += uint64(n)
	r.vectors = advance(r.vectors, uint64(n))
}

// clip returns the vectors of the first n bytes. The last of them is shorter by
// cut bytes than it was; the caller makes it longer again.
func clip(vectors []unix.Iovec, n uint64) (first []unix.Iovec, cut uint64) {
	for i := range vectors {
		v := &vectors[i]
		if n <= v.Len {
			cut, v.Len = v.Len-n, n
			return vectors[:i+1], cut
		}
		n -= v.Len
	}
	return vectors, 0
}

// Thresholds for what is moved on the goroutine of the queue.
const (
	// maxInline is how much a request may move there: a longer one would
	// keep the others waiting even from the page cache.
	maxInline = 4 << 20
	// slowBase and slowPerMiB say when a transfer must have waited for
	// something: copying 1 MiB takes a tenth of that.
	slowBase   = 300 * time.Microsecond
	slowPerMiB = time.Millisecond
	// After a slow transfer that many others are handed over, and after
	// each further one twice as many.
	minAway, maxAway = 16, 4096
)

// pace tells whether transfers that the kernel may block on go at once all the
// same, from experience: writes into the page cache do until there is too much
// to be written back.
type pace struct {
	// away is how many are handed over after a slow one, of which left are
	// to come.
	away, left int
}

// quick tells whether the next transfer is likely not to block.
func (p *pace) quick() bool {
	if p.left > 0 {
		p.left--
		return false
	}
	return true
}

// note learns how long a transfer took.
func (p *pace) note(took time.Duration, bytes uint32) {
	if took <= slowBase+slowPerMiB*time.Duration(bytes)>>20 {
		p.away = 0
		return
	}
	p.away = min(max(2*p.away, minAway), maxAway)
	p.left = p.away
}

// inline moves what can be moved without blocking. It returns true if the
// request is done, with errno.
func (s *service) inline(r *request) (done bool, errno unix.Errno) {
	if r.length > maxInline || r.durable || r.image.direct >= 0 || s.device.config.noInline {
		return false, 0
	}
	switch {
	case r.work == workRead && !s.device.noNowait.Load():
		errno = r.move(unix.RWF_NOWAIT)
		if errno == unix.EOPNOTSUPP {
			// The file system cannot tell whether a read would block.
			s.device.noNowait.Store(true)
			return false, 0
		}
		if errno == unix.EAGAIN {
			return false, 0
		}
	case s.pace.quick():
		start := time.Now()
		if r.overlay != nil {
			errno = r.overlay.write(r, unix.RWF_NOWAIT)
		} else {
			errno = r.move(0)
		}
		s.pace.note(time.Since(start), r.length)
		if errno == unix.EAGAIN {
			return false, 0
		}
	default:
		return false, 0
	}
	return true, errno
}
