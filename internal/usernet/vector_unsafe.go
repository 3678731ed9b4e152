package usernet

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// appendVector appends the vector of p, if p is not empty.
func appendVector(vectors []unix.Iovec, p []byte) []unix.Iovec {
	if len(p) == 0 {
		return vectors
	}
	return append(vectors, unix.Iovec{Base: unsafe.SliceData(p), Len: uint64(len(p))})
}

// writev is that of the kernel. The one of package unix allocates.
func writev(fd int, vectors []unix.Iovec) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&vectors[0])), uintptr(len(vectors)))
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}
