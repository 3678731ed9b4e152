package net

import (
	"unsafe"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"golang.org/x/sys/unix"
)

// maxVectors is how many vectors the kernel takes at once (UIO_MAXIOV).
const maxVectors = 1024

// setVectors makes a vector of each buffer. There is room for them.
func setVectors(vectors []unix.Iovec, buffers []virtio.Buffer) {
	for i := range buffers {
		vectors[i] = vector(buffers[i].Data)
	}
}

// vector is that of p, which is not empty.
func vector(p []byte) unix.Iovec {
	return unix.Iovec{Base: unsafe.SliceData(p), Len: uint64(len(p))}
}

// readv and writev are those of the kernel, on at least one vector. Those of
// package unix allocate. The memory behind the vectors is kept by the caller.
func readv(fd int, vectors []unix.Iovec) (int, unix.Errno) {
	n, _, errno := unix.Syscall(unix.SYS_READV, uintptr(fd), uintptr(unsafe.Pointer(&vectors[0])), uintptr(len(vectors)))
	return int(n), errno
}

func writev(fd int, vectors []unix.Iovec) (int, unix.Errno) {
	n, _, errno := unix.Syscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&vectors[0])), uintptr(len(vectors)))
	return int(n), errno
}
