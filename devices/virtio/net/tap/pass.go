package tap

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Files are descriptors of the queues for another process of this host, which goes on
// where this one stops: what waits in the queues is not lost. The caller closes them.
func (t *Tap) Files() ([]*os.File, error) {
	var files []*os.File
	for _, fd := range t.fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
			return nil, fmt.Errorf("tap interface %s: %w", t.name, err)
		}
		files = append(files, os.NewFile(uintptr(dup), t.name))
	}
	return files, nil
}

// FromFiles is an interface that another process has, by what its Files gave. Nothing of
// it changes before the device that it is for is started. The caller may close the files.
func FromFiles(files []*os.File) (*Tap, error) {
	t := &Tap{}
	for _, f := range files {
		if err := t.take(f); err != nil {
			return nil, fmt.Errorf("tap interface that was passed: %w", errors.Join(err, t.Close()))
		}
	}
	if len(t.fds) == 0 {
		return nil, errors.New("tap interface that was passed: it has no queues")
	}
	// Its name means the same only in the same network namespace.
	if err := t.configure(Config{}); err != nil {
		return nil, fmt.Errorf("tap interface %s, that was passed: %w", t.name, errors.Join(err, t.Close()))
	}
	return t, nil
}

// take adds a queue.
func (t *Tap) take(f *os.File) error {
	fd, err := duplicate(f)
	if err != nil {
		return err
	}
	t.fds = append(t.fds, fd)
	r, err := unix.NewIfreq("any")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, r); err != nil {
		return fmt.Errorf("TUNGETIFF: %w: it is no tap interface", err)
	}
	flags := r.Uint16()
	const kind = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if flags&(kind|unix.IFF_TUN) != kind {
		return fmt.Errorf("it has flags %#x, want %#x", flags, kind)
	}
	size, err := unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ)
	if err != nil {
		return fmt.Errorf("TUNGETVNETHDRSZ: %w", err)
	}
	if size != headerSize {
		return fmt.Errorf("its frames have headers of %d bytes, want %d", size, headerSize)
	}
	if t.name == "" {
		t.name = r.Name()
	}
	if r.Name() != t.name {
		return fmt.Errorf("its queues are of %s and %s", t.name, r.Name())
	}
	if flags&unix.IFF_DETACH_QUEUE == 0 {
		t.attached = len(t.fds)
	}
	return nil
}

// duplicate is a descriptor of the file. os.File.Fd would make it blocking, for the process
// that it comes from as well, whose loop would hang.
func duplicate(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	controlled := raw.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(controlled, err)
}
