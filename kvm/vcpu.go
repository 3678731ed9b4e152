package kvm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// VCPU is a virtual processor. KVM wants all its ioctls from one thread, the
// one that runs it (KVM API §2), so its goroutine holds runtime.LockOSThread.
// SetImmediateExit may be called by any goroutine, as long as none closes the
// VCPU at the same time.
type VCPU struct {
	fd        int
	id        int
	xsaveSize int
	run       []byte // the shared struct kvm_run and what follows it

	ringMem  []byte     // mapping of ring, see MapDirtyRing
	ring     []dirtyGFN // the entries in it
	ringNext uint32     // number of the next entry, ever growing
}

func newVCPU(fd, id, mmapSize, xsaveSize int) (*VCPU, error) {
	unix.CloseOnExec(fd)
	run, err := unix.Mmap(fd, 0, mmapSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("kvm: map struct kvm_run of vCPU %d, %d bytes: %w", id, mmapSize, err)
	}
	return &VCPU{fd: fd, id: id, xsaveSize: xsaveSize, run: run}, nil
}

// ID is the number the vCPU was made with.
func (v *VCPU) ID() int { return v.id }

// Close unmaps and closes the vCPU. What IO, MMIO and the other accessors
// returned is no longer there after it.
func (v *VCPU) Close() error {
	if v.fd < 0 {
		return nil
	}
	err := v.unmapDirtyRing()
	if v.run != nil {
		if e := unix.Munmap(v.run); e != nil && err == nil {
			err = fmt.Errorf("kvm: unmap struct kvm_run of vCPU %d: %w", v.id, e)
		}
		v.run = nil
	}
	if e := closeFD(&v.fd); err == nil {
		err = e
	}
	return err
}

// Run runs the guest until it exits to user space (KVM API §4.10).
//
// The error is the bare errno. EINTR (a signal, or SetImmediateExit) and
// EAGAIN (a processor that waits for its start-up) are no failures, and leave
// nothing valid in the accessors. Without error, ExitReason says what happened.
//
// It takes unix.Syscall and not RawSyscall: the runtime must know that the
// thread is away, or a spinning guest holds up the garbage collector for good.
func (v *VCPU) Run() error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(v.fd), uintptr(KVM_RUN), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
