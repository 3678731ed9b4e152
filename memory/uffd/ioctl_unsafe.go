package uffd

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From <linux/userfaultfd.h>.
const (
	apiVersion = 0xaa

	featureEventRemove      = 1 << 3
	featureMissingHugetlbfs = 1 << 4
	featureMissingShmem     = 1 << 5

	modeMissing = 1 << 0

	ioctlNew        = 0xaa00 // of the device
	ioctlAPI        = 0xc018aa3f
	ioctlRegister   = 0xc020aa00
	ioctlUnregister = 0x8010aa01
	ioctlWake       = 0x8010aa02
	ioctlCopy       = 0xc028aa03
	ioctlZeropage   = 0xc020aa04
	ioctlPoison     = 0xc020aa08

	eventPagefault = 0x12
	eventRemove    = 0x15
)

// span is struct uffdio_range.
type span struct{ start, len uint64 }

// apiArg is struct uffdio_api.
type apiArg struct {
	api, features uint64
	_             uint64 // ioctls
}

// registerArg is struct uffdio_register.
type registerArg struct {
	span
	mode uint64
	_    uint64 // ioctls
}

// copyArg is struct uffdio_copy.
type copyArg struct {
	dst  uint64
	src  *byte
	len  uint64
	_    uint64 // mode
	done int64
}

// zeroArg is struct uffdio_zeropage, and struct uffdio_poison.
type zeroArg struct {
	span
	_    uint64 // mode
	done int64
}

// message is struct uffd_msg: start and end are flags and address of a page fault.
type message struct {
	event      uint8
	_          [7]byte
	start, end uint64
	_          uint64
}

func newFD(flags int) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, uintptr(flags), 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func newFromDevice(dev, flags int) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), ioctlNew, uintptr(flags))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// control issues an ioctl. The pointer becomes a number in the call only, see package kvm.
func control[T any](fd int, request uintptr, arg *T) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return errno
	}
	return nil
}

func copyTo(fd int, addr uint64, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	a := copyArg{dst: addr, src: unsafe.SliceData(p), len: uint64(len(p))}
	err := control(fd, ioctlCopy, &a)
	runtime.KeepAlive(p)
	return done(err, a.done)
}

// read reads messages: those that are there, at most len(into).
func read(fd int, into []message) (int, error) {
	size := unsafe.Sizeof(message{})
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(into))), uintptr(len(into))*size)
	n, err := unix.Read(fd, bytes)
	return max(n, 0) / int(size), err
}

// addressOf is where memory that is not Go's lies in this process.
func addressOf(mem []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))) }
