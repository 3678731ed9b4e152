package vsock

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

// maxVector is how many pieces readv(2) and writev(2) take (IOV_MAX).
const maxVector = 1024

// vector is memory that readv(2) fills or writev(2) takes, in pieces. It is used
// again for the next call; the functions of x/sys/unix allocate for more than
// eight pieces.
type vector struct {
	pieces []unix.Iovec
	n      uint32 // bytes in all
}

func (v *vector) clear() {
	clear(v.pieces) // no reference to a buffer that is given up
	v.pieces, v.n = v.pieces[:0], 0
}

// add appends a piece, which may be empty.
func (v *vector) add(p []byte) {
	if len(p) == 0 {
		return
	}
	v.pieces = append(v.pieces, unix.Iovec{Base: unsafe.SliceData(p), Len: uint64(len(p))})
	v.n += uint32(len(p))
}

// addBuffers appends up to n bytes of bufs, from off on.
func (v *vector) addBuffers(bufs []virtio.Buffer, off, n uint32) {
	for _, b := range bufs {
		if n == 0 {
			return
		}
		size := uint32(len(b.Data))
		if off >= size {
			off -= size
			continue
		}
		m := min(n, size-off)
		v.add(b.Data[off : off+m])
		off, n = 0, n-m
	}
}

// bytes is piece i.
func (v *vector) bytes(i int) []byte { return unsafe.Slice(v.pieces[i].Base, v.pieces[i].Len) }

func (v *vector) readFrom(fd int) (int, error) { return v.call(unix.SYS_READV, fd) }
func (v *vector) writeTo(fd int) (int, error)  { return v.call(unix.SYS_WRITEV, fd) }

// call makes a system call on a socket that does not block.
func (v *vector) call(number uintptr, fd int) (int, error) {
	for {
		n, _, errno := unix.Syscall(number, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(v.pieces))), uintptr(len(v.pieces)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
