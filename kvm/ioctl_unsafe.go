package kvm

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// All memory that the kernel reads or writes by address passes through this
// file. Two rules keep the garbage collector and the growing of stacks out of
// the kernel's way:
//
//   - A pointer becomes a uintptr only inside the argument list of
//     unix.Syscall. There the compiler keeps the object alive, and the runtime
//     does not move a stack that is in a system call. A uintptr computed one
//     statement earlier points to where the object used to be.
//   - Arguments that hold an address themselves hold it as a typed pointer,
//     so that the collector sees it, and are followed by a KeepAlive.
//
// In return no argument escapes, so none of these calls allocates.

// call issues an ioctl whose argument is a number.
func call(fd int, req Request, arg uintptr) (uintptr, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), arg)
	if errno != 0 {
		return 0, failed(req, errno)
	}
	return r, nil
}

// pass issues an ioctl whose argument is a pointer to a T, which the kernel
// reads, writes or both. T must have the kernel's layout; the ABI test checks
// each one.
func pass[T any](fd int, req Request, arg *T) (uintptr, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return 0, failed(req, errno)
	}
	return r, nil
}

// get issues an ioctl that fills a T.
func get[T any](fd int, req Request) (T, error) {
	var v T
	_, err := pass(fd, req, &v)
	return v, err
}

// set issues an ioctl that reads a T.
func set[T any](fd int, req Request, v T) error {
	_, err := pass(fd, req, &v)
	return err
}

// failed is out of line to keep the calls above small.
func failed(req Request, errno unix.Errno) error {
	return fmt.Errorf("kvm: %v: %w", req, errno)
}

// flexible lays out a header H followed by n entries E in one piece of
// memory, as the kernel's structs with a flexible array member want them. H
// is a multiple of E's alignment in every struct of KVM.
func flexible[H, E any](n int) (*H, []E) {
	var h H
	var e E
	size := unsafe.Sizeof(h) + uintptr(n)*unsafe.Sizeof(e)
	// 64-bit words, for the alignment.
	words := make([]uint64, (size+7)/8)
	base := unsafe.Pointer(unsafe.SliceData(words))
	if n == 0 {
		return (*H)(base), nil
	}
	return (*H)(base), unsafe.Slice((*E)(unsafe.Add(base, unsafe.Sizeof(h))), n)
}

// addressOf is the address of memory that is not Go's (a mapping), as the
// kernel wants it in struct kvm_userspace_memory_region.
func addressOf(mem []byte) uint64 {
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
}

// dirtyLog is struct kvm_dirty_log.
type dirtyLog struct {
	slot   uint32
	_      uint32
	bitmap *uint64
}

// clearDirtyLog is struct kvm_clear_dirty_log.
type clearDirtyLog struct {
	slot      uint32
	numPages  uint32
	firstPage uint64
	bitmap    *uint64
}

func getDirtyLog(fd int, slot uint32, bitmap []uint64) error {
	err := set(fd, KVM_GET_DIRTY_LOG, dirtyLog{slot: slot, bitmap: unsafe.SliceData(bitmap)})
	runtime.KeepAlive(bitmap)
	return err
}

func doClearDirtyLog(fd int, slot uint32, firstPage uint64, numPages uint32, bitmap []uint64) error {
	err := set(fd, KVM_CLEAR_DIRTY_LOG, clearDirtyLog{
		slot: slot, numPages: numPages, firstPage: firstPage, bitmap: unsafe.SliceData(bitmap),
	})
	runtime.KeepAlive(bitmap)
	return err
}

// deviceAttr is struct kvm_device_attr.
type deviceAttr struct {
	_     uint32 // flags
	group uint32
	attr  uint64
	addr  *uint64
}

// attribute issues one of KVM_{SET,GET,HAS}_DEVICE_ATTR for a 64-bit value.
func attribute(fd int, req Request, group uint32, attr uint64, value *uint64) error {
	err := set(fd, req, deviceAttr{group: group, attr: attr, addr: value})
	runtime.KeepAlive(value)
	return err
}

// header is the fixed part of the mapped struct kvm_run.
func (v *VCPU) header() *runHeader {
	return (*runHeader)(unsafe.Pointer(unsafe.SliceData(v.run)))
}

// exit is the union of struct kvm_run as the member of the exit at hand. T
// must fit the 256 bytes of the union.
func exit[T any](v *VCPU) *T {
	return (*T)(unsafe.Pointer(&v.header().exit))
}

// entriesOf views mapped memory as a ring of Es.
func entriesOf[E any](mem []byte) []E {
	var e E
	return unsafe.Slice((*E)(unsafe.Pointer(unsafe.SliceData(mem))), uintptr(len(mem))/unsafe.Sizeof(e))
}

// coalescedView views a page as the ring of coalesced writes: a header and as
// many slots as fit behind it (KVM_COALESCED_MMIO_MAX).
func coalescedView(page []byte) (*coalescedRing, []coalescedWrite) {
	ring := (*coalescedRing)(unsafe.Pointer(unsafe.SliceData(page)))
	return ring, entriesOf[coalescedWrite](page[unsafe.Sizeof(*ring):])
}

// The two bytes request_interrupt_window and immediate_exit lie in one
// aligned word, and immediate_exit is set by other threads. Go has no atomic
// operations on bytes, so the word is changed with AND and OR.
const (
	requestInterruptWindowBit = 1 << 0
	immediateExitBit          = 1 << 8
)

func (v *VCPU) setControl(bit uint32, on bool) {
	if on {
		atomic.OrUint32(&v.header().control, bit)
	} else {
		atomic.AndUint32(&v.header().control, ^bit)
	}
}
