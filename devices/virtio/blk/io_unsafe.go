package blk

import (
	"unsafe"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"golang.org/x/sys/unix"
)

// The kernel takes at least as many vectors at once (UIO_MAXIOV) as a chain has
// buffers.
const _ = uint(1024 - virtio.MaxChain)

// appendVectors appends vectors of the n bytes behind the first skip bytes of
// the buffers, which have as many.
func appendVectors(vectors []unix.Iovec, buffers []virtio.Buffer, skip, n uint32) []unix.Iovec {
	for i := range buffers {
		data := buffers[i].Data
		if uint64(skip) >= uint64(len(data)) {
			skip -= uint32(len(data))
			continue
		}
		data = data[skip:]
		skip = 0
		if uint64(len(data)) >= uint64(n) {
			data = data[:n]
		}
		if len(data) > 0 {
			vectors = append(vectors, unix.Iovec{Base: unsafe.SliceData(data), Len: uint64(len(data))})
		}
		if n -= uint32(len(data)); n == 0 {
			break
		}
	}
	return vectors
}

// advance drops the first n bytes of the vectors.
func advance(vectors []unix.Iovec, n uint64) []unix.Iovec {
	for len(vectors) > 0 && n >= vectors[0].Len {
		n -= vectors[0].Len
		vectors = vectors[1:]
	}
	if n > 0 {
		v := &vectors[0]
		v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
		v.Len -= n
	}
	return vectors
}

// aligned tells whether no vector has one of the given bits in its address or
// length.
func aligned(vectors []unix.Iovec, address, length uint64) bool {
	var addresses, lengths uint64
	for i := range vectors {
		addresses |= uint64(uintptr(unsafe.Pointer(vectors[i].Base)))
		lengths |= vectors[i].Len
	}
	return addresses&address == 0 && lengths&length == 0
}

// preadv2 and pwritev2 are those of the kernel. The ones of package unix
// allocate. They are announced to the scheduler also when they do not wait for
// the disk: guest memory that is not there may be served by another goroutine
// of this process.
func preadv2(fd int, vectors []unix.Iovec, offset uint64, flags int) (int, unix.Errno) {
	return vectorIO(unix.SYS_PREADV2, fd, vectors, offset, flags)
}

func pwritev2(fd int, vectors []unix.Iovec, offset uint64, flags int) (int, unix.Errno) {
	return vectorIO(unix.SYS_PWRITEV2, fd, vectors, offset, flags)
}

func vectorIO(call uintptr, fd int, vectors []unix.Iovec, offset uint64, flags int) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(vectors))), uintptr(len(vectors)),
		uintptr(offset), 0, uintptr(flags))
	return int(n), errno
}

// deviceSize is the size of a block device in bytes.
func deviceSize(fd int) (size uint64, err error) {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); errno != 0 {
		return 0, errno
	}
	return size, nil
}

// discardDevice gives up the contents of a range of a block device.
func discardDevice(fd int, offset, length uint64) unix.Errno {
	span := [2]uint64{offset, length}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
	return errno
}
