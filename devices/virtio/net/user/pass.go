package user

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Files are what another process of this host needs to go on with the network where this
// one stops, so that no connection is lost: the socket, and a descriptor of the program's
// process (pidfd_open(2)). The caller closes them.
func (n *Network) Files() ([]*os.File, error) {
	socket, err := unix.FcntlInt(uintptr(n.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("user networking: %w", err)
	}
	process, err := n.pidfd()
	if err != nil {
		return nil, fmt.Errorf("user networking: its process: %w", errors.Join(err, unix.Close(socket)))
	}
	return []*os.File{os.NewFile(uintptr(socket), "user network"), os.NewFile(uintptr(process), "its process")}, nil
}

func (n *Network) pidfd() (int, error) {
	if n.command == nil {
		return unix.FcntlInt(uintptr(n.process), unix.F_DUPFD_CLOEXEC, 0)
	}
	return unix.PidfdOpen(n.command.Process.Pid, 0)
}

// Release has Close leave the program to the process that has got the Files.
func (n *Network) Release() { n.released = true }

// FromFiles is a network that another process has, by what its Files gave. mtu is that of
// the settings. Nothing of it changes before the device that it is for is started. The
// caller may close the files.
func FromFiles(files []*os.File, mtu int) (*Network, error) {
	if len(files) != 2 {
		return nil, fmt.Errorf("user networking that was passed: %d files, want a socket and a process", len(files))
	}
	// Until its device is started it is the other process's still.
	n := &Network{fd: -1, process: -1, mtu: cmp.Or(mtu, DefaultMTU), released: true}
	err := duplicate(&n.fd, files[0])
	if err == nil {
		err = duplicate(&n.process, files[1])
	}
	if err == nil {
		err = checkSocket(n.fd)
	}
	if err != nil {
		return nil, fmt.Errorf("user networking that was passed: %w", errors.Join(err, n.Close()))
	}
	return n, nil
}

// duplicate makes a descriptor of the file. os.File.Fd would make it blocking, for the
// process that it comes from as well.
func duplicate(fd *int, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	controlled := raw.Control(func(from uintptr) { *fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) })
	return errors.Join(controlled, err)
}

func checkSocket(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("it is no socket: %w", err)
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || domain != unix.AF_UNIX || kind != unix.SOCK_SEQPACKET {
		return errors.Join(fmt.Errorf("a socket of type %d of family %d, want unix packets", kind, domain), err)
	}
	return nil
}

// endPassed waits for the end of a program that another process has started, whose socket
// is closed.
func (n *Network) endPassed() error {
	if n.process < 0 {
		return nil
	}
	process := n.process
	n.process = -1
	var err error
	if !n.released && !ends(process, stopTime) {
		err = unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0)
		ends(process, stopTime)
	}
	return errors.Join(err, unix.Close(process))
}

// ends waits for the end of a process.
func ends(process int, within time.Duration) bool {
	until := time.Now().Add(within)
	for {
		fds := []unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(time.Until(until), 0).Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}
