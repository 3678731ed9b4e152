package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Port is the agent's port: it listens there in the guest, and a guest that is
// up connects to the same port of the host (Announce). It is below 1024, where
// only privileged programs of the guest can listen, so that no other can take
// the agent's place.
const Port = 1000

const (
	// maxClients bounds how many connections are served at once by vsock.
	maxClients = 64
	// backlog is how many connections may wait to be accepted. More of them
	// at once are refused.
	backlog = 1024
	// announceFirst and announceMost bound how long a guest waits until it
	// tries again to say that it is up, after nobody on the host listened.
	announceFirst = time.Second
	announceMost  = 30 * time.Second
)

// ErrNoVsock says that this system is no guest with a vsock device.
var ErrNoVsock = errors.New("no vsock device")

// The sockets are made here and not by a library: it takes little more than the
// system calls, and init stays small.

// VsockListener listens for the host's connections.
type VsockListener struct{ f *os.File }

// ListenVsock listens at a port. The error wraps ErrNoVsock where this system has
// no vsock device by which a host could reach it.
func ListenVsock(port uint32) (*VsockListener, error) {
	if err := checkVsock(); err != nil {
		return nil, err
	}
	f, err := vsockSocket()
	if err != nil {
		return nil, err
	}
	err = control(f, func(fd int) error {
		if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
			return err
		}
		return unix.Listen(fd, backlog)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen at vsock port %d: %w", port, err), f.Close())
	}
	return &VsockListener{f}, nil
}

// checkVsock finds out whether there is a transport to a host. Without one
// sockets can be made all the same.
func checkVsock() error {
	const minCID = 3 // below are those that never are a guest's
	f, err := os.Open("/dev/vsock")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoVsock, err)
	}
	defer f.Close()
	return control(f, func(fd int) error {
		cid, err := unix.IoctlGetUint32(fd, unix.IOCTL_VM_SOCKETS_GET_LOCAL_CID)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNoVsock, err)
		}
		if cid < minCID || cid == unix.VMADDR_CID_ANY {
			return fmt.Errorf("%w: the CID is %d", ErrNoVsock, int32(cid))
		}
		return nil
	})
}

// Accept waits for a connection of the host. Those of others, which are programs
// of this very guest, are closed.
func (l *VsockListener) Accept() (*os.File, error) {
	for {
		fd, from, err := l.accept()
		if err != nil {
			return nil, fmt.Errorf("accept by vsock: %w", err)
		}
		f := os.NewFile(uintptr(fd), "vsock")
		if peer, ok := from.(*unix.SockaddrVM); ok && peer.CID == unix.VMADDR_CID_HOST {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, fmt.Errorf("accept by vsock: %w", err)
		}
	}
}

func (l *VsockListener) accept() (fd int, from unix.Sockaddr, err error) {
	raw, err := l.f.SyscallConn()
	if err != nil {
		return -1, nil, err
	}
	waited := raw.Read(func(listener uintptr) bool {
		fd, from, err = unix.Accept4(int(listener), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		// One that broke off before it was accepted is not worth an error.
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.EINTR)
	})
	return fd, from, errors.Join(waited, err)
}

// Close ends the listener; Accept fails.
func (l *VsockListener) Close() error { return l.f.Close() }

// DialVsock connects to a port of the host (CID 2).
func DialVsock(port uint32) (*os.File, error) {
	f, err := vsockSocket()
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	started := false
	waited := raw.Write(func(fd uintptr) bool {
		if started {
			var code int
			if code, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err == nil && code != 0 {
				err = unix.Errno(code)
			}
			return true
		}
		started = true
		err = unix.Connect(int(fd), &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: port})
		return !errors.Is(err, unix.EINPROGRESS)
	})
	if err = errors.Join(waited, err); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to port %d of the host: %w", port, err), f.Close())
	}
	return f, nil
}

// vsockSocket is a socket that the runtime polls.
func vsockSocket() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("vsock socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "vsock"), nil
}

// control calls f with the descriptor of a file.
func control(f *os.File, call func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = raw.Control(func(fd uintptr) { failure = call(int(fd)) })
	return errors.Join(err, failure)
}

// ServeVsock serves the clients that connect to l, each on its own connection,
// until l is closed. Trouble with one client is no error.
func (s *Server) ServeVsock(l *VsockListener) error {
	places := make(chan struct{}, maxClients)
	for {
		places <- struct{}{}
		c, err := l.Accept()
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			// The client learns of it, too.
			_ = s.Serve(c)
			<-places
		}()
	}
}

// Hello is what a guest that is up sends on the connection that says so, once the
// connection stands on its side. A slow guest may give up a connection that the host
// has accepted already, and dial again.
const Hello = 'u'

// AwaitHello returns when the guest has sent Hello on a connection to Port, within
// limit.
func AwaitHello(c net.Conn, limit time.Duration) error {
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return fmt.Errorf("the guest did not say that it is up: %w", err)
	}
	if b[0] != Hello {
		return fmt.Errorf("the guest says %q, want %q: that is not godwit's agent", b[0], Hello)
	}
	return c.SetReadDeadline(time.Time{})
}

// Announce tells the host that the guest is up, for which the server must listen
// already: it connects to Port of the host, says Hello and keeps the connection. When
// that ends, as it does when the machine was restored from a snapshot, it connects
// again. Announce returns when stop is closed.
func Announce(stop <-chan struct{}) {
	for pause := announceFirst; ; {
		if c, err := DialVsock(Port); err == nil {
			// If that fails, the connection has ended.
			_, _ = c.Write([]byte{Hello})
			held(c, stop)
			pause = announceFirst
		} else {
			select {
			case <-time.After(pause):
			case <-stop:
			}
			pause = min(2*pause, announceMost)
		}
		select {
		case <-stop:
			return
		default:
		}
	}
}

// held returns when a connection has ended, or stop is closed.
func held(c *os.File, stop <-chan struct{}) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 64)
		for {
			// The host has nothing to say here.
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	}()
	select {
	case <-ended:
	case <-stop:
	}
	// Whatever is wrong with it, it is given up.
	_ = c.Close()
	<-ended
}
