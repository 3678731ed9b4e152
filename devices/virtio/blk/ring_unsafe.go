package blk

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ringParams is struct io_uring_params.
type ringParams struct {
	sqEntries, cqEntries, flags      uint32
	sqThreadCPU, sqThreadIdle        uint32
	features, wqFD                   uint32
	_                                [3]uint32
	sqHead, sqTail, sqMask, sqNumber uint32 // offsets
	sqFlags, sqDropped, sqArray, _   uint32
	_                                uint64
	cqHead, cqTail, cqMask, cqNumber uint32
	cqOverflow, cqEntry, cqFlags, _  uint32
	_                                uint64
}

// ringRestriction is struct io_uring_restriction.
type ringRestriction struct {
	opcode  uint16
	what, _ uint8
	_       [3]uint32
}

// submission is struct io_uring_sqe.
type submission struct {
	opcode, _             uint8
	_                     uint16
	fd                    int32
	offset, address       uint64
	length, operationFlag uint32
	user                  uint64
	_                     [3]uint64
}

// completion is struct io_uring_cqe.
type completion struct {
	user   uint64
	result int32
	_      uint32
}

// ringMemory is what a ring shares with the kernel.
type ringMemory struct {
	rings, entries []byte // the mappings

	sqTail, cqHead, cqTail *uint32
	sqMask, cqMask         uint32
	submissions            []submission
	completions            []completion
}

func (m *ringMemory) mmap(fd int, p *ringParams) (err error) {
	size := max(p.sqArray+p.sqEntries*4, p.cqEntry+p.cqEntries*uint32(unsafe.Sizeof(completion{})))
	const protection, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if m.rings, err = unix.Mmap(fd, offSQRing, int(size), protection, flags); err != nil {
		return err
	}
	if m.entries, err = unix.Mmap(fd, offSQEs, int(p.sqEntries)*int(unsafe.Sizeof(submission{})), protection, flags); err != nil {
		return err
	}
	m.sqTail, m.cqHead, m.cqTail = m.word(p.sqTail), m.word(p.cqHead), m.word(p.cqTail)
	m.sqMask, m.cqMask = *m.word(p.sqMask), *m.word(p.cqMask)
	m.submissions = unsafe.Slice((*submission)(unsafe.Pointer(&m.entries[0])), p.sqEntries)
	m.completions = unsafe.Slice((*completion)(unsafe.Pointer(m.word(p.cqEntry))), p.cqEntries)
	// The indirection from the ring to the entries is not needed.
	for i, array := uint32(0), unsafe.Slice(m.word(p.sqArray), p.sqEntries); i < p.sqEntries; i++ {
		array[i] = i
	}
	return nil
}

func (m *ringMemory) word(offset uint32) *uint32 {
	return (*uint32)(unsafe.Pointer(&m.rings[offset : offset+4][0]))
}

func (m *ringMemory) munmap() error {
	for _, mapping := range [][]byte{m.rings, m.entries} {
		if mapping != nil {
			if err := unix.Munmap(mapping); err != nil {
				return err
			}
		}
	}
	*m = ringMemory{}
	return nil
}

// put fills the entry at the given place. The vectors are copied by the kernel
// when it takes the entry (SUBMIT_STABLE), until when the caller keeps them; the
// memory that they point to is the guest's.
func (m *ringMemory) put(at uint32, opcode uint8, fd int, offset uint64, vectors []unix.Iovec, flags int, index uint32) {
	m.submissions[at&m.sqMask] = submission{
		opcode: opcode, fd: int32(fd), offset: offset,
		address: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(vectors)))), length: uint32(len(vectors)),
		operationFlag: uint32(flags), user: uint64(index),
	}
}

// index is the request of an entry.
func (m *ringMemory) index(at uint32) uint32 { return uint32(m.submissions[at&m.sqMask].user) }

// publish makes the entries up to tail visible to the kernel.
func (m *ringMemory) publish(tail uint32) { atomic.StoreUint32(m.sqTail, tail) }

// ready tells whether next has something.
func (m *ringMemory) ready() bool { return *m.cqHead != atomic.LoadUint32(m.cqTail) }

// next takes a completion: the index of a request, and the result of its system
// call.
func (m *ringMemory) next() (index uint32, result int32, ok bool) {
	head := *m.cqHead
	if head == atomic.LoadUint32(m.cqTail) {
		return 0, 0, false
	}
	c := m.completions[head&m.cqMask]
	atomic.StoreUint32(m.cqHead, head+1)
	return uint32(c.user), c.result, true
}

func ringSetup(n uint32, p *ringParams) (int, unix.Errno) {
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(n), uintptr(unsafe.Pointer(p)), 0)
	return int(fd), errno
}

func ringRestrict(fd int, r []ringRestriction) unix.Errno {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(fd), registerRestrictions, uintptr(unsafe.Pointer(&r[0])), uintptr(len(r)), 0, 0)
	return errno
}

func ringEnable(fd int) unix.Errno {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(fd), registerEnableRings, 0, 0, 0, 0)
	return errno
}

// ringEnter submits n entries, and returns how many the kernel took.
func ringEnter(fd int, n uint32) (uint32, unix.Errno) {
	taken, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(n), 0, 0, 0, 0)
	return uint32(taken), errno
}
