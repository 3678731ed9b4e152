package blk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ring reads and writes through an io_uring: the kernel works on many requests
// at a time without a thread for each. It is for one goroutine at a time.
//
// Only reads and writes are allowed on it, so that it is no way around the rules
// that a sandbox has for system calls. The descriptors are not registered: the
// kernel would keep the image open, and locked, for some time after the process
// has ended.
type ring struct {
	ringMemory
	fd int
	// tail is where the next entry goes, and taken how far the kernel has
	// got.
	tail, taken uint32
}

// Numbers of the kernel's interface, which keep its spelling without the prefix
// IORING.
const (
	opReadV  = 1
	opWriteV = 2

	setupRDisabled = 1 << 6

	registerRestrictions = 11
	registerEnableRings  = 12
	restrictionSQEOp     = 1

	featSingleMmap = 1 << 0
	featNoDrop     = 1 << 1
	featStable     = 1 << 2 // SUBMIT_STABLE

	offSQRing = 0
	offSQEs   = 0x10000000
)

// errNoRing says that the host has no io_uring that will do: one of Linux 5.10
// or later, not switched off.
var errNoRing = errors.New("no io_uring")

// newRing makes a ring that has at most n requests, a power of two, at a time.
func newRing(n uint32) (*ring, error) {
	params := ringParams{flags: setupRDisabled}
	fd, errno := ringSetup(n, &params)
	if errno != 0 {
		return nil, fmt.Errorf("%w: %w", errNoRing, errno)
	}
	r := &ring{fd: fd}
	const features = featSingleMmap | featNoDrop | featStable
	if params.features&features != features {
		return nil, errors.Join(fmt.Errorf("%w with features %#x", errNoRing, features), r.close())
	}
	errno = ringRestrict(fd, []ringRestriction{
		{opcode: restrictionSQEOp, what: opReadV},
		{opcode: restrictionSQEOp, what: opWriteV},
	})
	if errno == 0 {
		errno = ringEnable(fd)
	}
	if errno != 0 {
		return nil, errors.Join(fmt.Errorf("%w: %w", errNoRing, errno), r.close())
	}
	if err := r.mmap(fd, &params); err != nil {
		return nil, errors.Join(fmt.Errorf("map an io_uring: %w", err), r.close())
	}
	return r, nil
}

// submit queues what is left of a read or write, which is in one piece at the
// given offset of the file. There is room for it. The request must stay where it
// is until it has completed.
func (r *ring) submit(q *request, fd int, offset uint64) {
	op, flags := uint8(opReadV), 0
	if q.work == workWrite {
		op, flags = opWriteV, q.writeFlags()
	}
	r.put(r.tail, op, fd, offset, q.vectors, flags, q.index)
	r.tail++
}

// enter gives what was queued to the kernel. If it fails, take back has what
// the kernel did not take.
func (r *ring) enter() unix.Errno {
	r.publish(r.tail)
	for r.taken != r.tail {
		n, errno := ringEnter(r.fd, r.tail-r.taken)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		r.taken += n
	}
	return 0
}

// takeBack removes the last request from the queue that the kernel did not take
// and returns its index, or false if there is none.
func (r *ring) takeBack() (index uint32, ok bool) {
	if r.tail == r.taken {
		return 0, false
	}
	r.tail--
	r.publish(r.tail)
	return r.index(r.tail), true
}

// close ends the ring, which has no requests.
func (r *ring) close() error { return errors.Join(r.munmap(), unix.Close(r.fd)) }
