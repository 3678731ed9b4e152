package uffd

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Options say what a new FD is to do.
type Options struct {
	// Removals makes the kernel tell of pages that are given back by madvise(2), and
	// wait until the event is read. Without it they only are missing again.
	Removals bool
}

// FD is a userfaultfd. Its methods may be called from any goroutine, Close when no
// other runs.
type FD struct {
	fd int
}

// device makes userfaultfds for those who may open it, where the system call is for
// privileged users only (Linux 6.1).
const device = "/dev/userfaultfd"

// Open makes a userfaultfd for memory of this process, which also sees the faults that
// the kernel has on behalf of the process: KVM's are of that kind.
func Open(o Options) (*FD, error) {
	fd, err := open()
	if err != nil {
		return nil, err
	}
	u := &FD{fd: fd}
	if err := u.handshake(o); err != nil {
		return nil, errors.Join(err, u.Close())
	}
	return u, nil
}

func open() (int, error) {
	const flags = unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := newFD(flags)
	if err == nil {
		return fd, nil
	}
	if errors.Is(err, unix.EPERM) {
		var dev *os.File
		if dev, err = os.OpenFile(device, os.O_RDWR, 0); err == nil {
			defer dev.Close()
			fd, err = newFromDevice(int(dev.Fd()), flags)
		}
	}
	if err != nil {
		return -1, fmt.Errorf("userfaultfd: %w: it takes root, access to %s, or vm.unprivileged_userfaultfd=1", err, device)
	}
	return fd, nil
}

// handshake enables the interface, with the features that we need.
func (u *FD) handshake(o Options) error {
	const needed = featureMissingShmem | featureMissingHugetlbfs
	a := apiArg{api: apiVersion, features: needed}
	if o.Removals {
		a.features |= featureEventRemove
	}
	if err := control(u.fd, ioctlAPI, &a); err != nil {
		return fmt.Errorf("userfaultfd: the kernel refuses features %#x: %w: Linux 4.11 or newer is needed", a.features, err)
	}
	return nil
}

// FromFile takes a userfaultfd that another process has opened. The memory is that
// process's. The file is closed if there is no error.
func FromFile(f *os.File) (*FD, error) {
	const kind = "anon_inode:[userfaultfd]"
	found, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err == nil && found != kind {
		err = fmt.Errorf("%s is not %s", found, kind)
	}
	fd := -1
	if err == nil {
		fd, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, fmt.Errorf("userfaultfd of another process: %w", err)
	}
	return &FD{fd: fd}, f.Close()
}

// FD is the descriptor.
func (u *FD) FD() int { return u.fd }

// Close closes the descriptor. In the process that opened it, and if nobody else has it,
// all who wait for pages go on, and find zeros: stop them before.
func (u *FD) Close() error { return unix.Close(u.fd) }

// Register makes faults on missing pages of a mapping wait for Copy or Zero. It is for
// the process that opened the FD.
func (u *FD) Register(m Mapping) error {
	a := registerArg{span: span{m.Addr, m.Size}, mode: modeMissing}
	if err := control(u.fd, ioctlRegister, &a); err != nil {
		return fmt.Errorf("userfaultfd: register %d bytes at %#x: %w", m.Size, m.Addr, err)
	}
	return nil
}

// Unregister undoes Register: missing pages are zero again. Who waits goes on.
func (u *FD) Unregister(m Mapping) error {
	s := span{m.Addr, m.Size}
	if err := control(u.fd, ioctlUnregister, &s); err != nil {
		return fmt.Errorf("userfaultfd: unregister %d bytes at %#x: %w", m.Size, m.Addr, err)
	}
	return nil
}

// Wake lets those go on that wait for the n bytes at an address, and look again.
func (u *FD) Wake(addr, n uint64) error {
	s := span{addr, n}
	if err := control(u.fd, ioctlWake, &s); err != nil {
		return fmt.Errorf("userfaultfd: wake %d bytes at %#x: %w", n, addr, err)
	}
	return nil
}

// Copy provides the pages at an address, with their content, and lets those go on that
// wait for them. It returns how many bytes it has done, whole pages in any case. It
// stops with EEXIST before a page that is there, and with EAGAIN while pages are being
// removed; with ENOENT, ENOSPC or ESRCH the memory is not registered any more, does not
// fit the host, or its process is gone.
func (u *FD) Copy(addr uint64, p []byte) (int, error) { return copyTo(u.fd, addr, p) }

// Zero is Copy of n zero bytes. Huge pages do not have it (EINVAL).
func (u *FD) Zero(addr, n uint64) (int, error) {
	a := zeroArg{span: span{addr, n}}
	return done(control(u.fd, ioctlZeropage, &a), a.done)
}

// GiveUp poisons the pages of a mapping that are missing: an access to them fails, with
// SIGBUS, and in system calls with EFAULT or EHWPOISON. Who waits for them goes on, and
// fails. It takes Linux 6.6.
func (u *FD) GiveUp(m Mapping) error {
	for at := uint64(0); at < m.Size; {
		a := zeroArg{span: span{m.Addr + at, m.Size - at}}
		n, err := done(control(u.fd, ioctlPoison, &a), a.done)
		switch {
		case err == nil:
			at += uint64(n)
		case errors.Is(err, unix.EEXIST): // it is there
			at += m.PageSize
		case errors.Is(err, unix.EAGAIN):
			time.Sleep(retryAfter)
		default:
			return fmt.Errorf("userfaultfd: give up %d bytes at %#x: %w", m.Size-at, m.Addr+at, err)
		}
	}
	return nil
}

// done sorts out what the kernel says of a call that may do a part of its work: then it
// is EAGAIN, and the number of bytes is positive.
func done(err error, n int64) (int, error) {
	switch {
	case err == nil:
		return int(n), nil
	case n > 0:
		return int(n), nil
	}
	return 0, err
}
