package vsock

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxPath is the longest path of a socket (unix(7): sun_path, with a
	// zero byte at its end).
	maxPath = 107
	// maxSuffix is what the port appends to the path: "_4294967295".
	maxSuffix = 11
	// backlog is how many of the host's programs may wait to be accepted.
	backlog = 1024
	// maxGreetingLine bounds "CONNECT 4294967295\n".
	maxGreetingLine = 32
	// The device's ports of connections that the host opens are these, which
	// no service has: the well-known ports of the host are the guest's to
	// choose.
	firstPort uint32 = 1 << 30
	lastPort  uint32 = 1<<31 - 1
)

// socketEvents are the edges that the loop waits for on every connection.
const socketEvents = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET

// listener is the device's socket.
type listener struct {
	fd   int
	path string
	// waiting says that somebody may be waiting to be accepted.
	waiting bool
}

// listen makes the socket, in the place of one that nobody listens at any more.
func listen(path string) (listener, error) {
	if len(path) > maxPath {
		return listener{}, fmt.Errorf("socket %s: the path is longer than %d bytes", path, maxPath)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return listener{}, fmt.Errorf("socket: %w", err)
	}
	address := &unix.SockaddrUnix{Name: path}
	err = unix.Bind(fd, address)
	if errors.Is(err, unix.EADDRINUSE) {
		if err = removeStale(path); err == nil {
			err = unix.Bind(fd, address)
		}
	}
	// Nobody can connect before it listens.
	if err == nil {
		if err = unix.Chmod(path, 0o600); err == nil {
			err = unix.Listen(fd, backlog)
		}
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}
	if err != nil {
		return listener{}, errors.Join(fmt.Errorf("socket %s: %w", path, err), unix.Close(fd))
	}
	return listener{fd: fd, path: path, waiting: true}, nil
}

// removeStale removes a socket whose owner is gone.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file of this name that is no socket")
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	if closed := unix.Close(fd); closed != nil {
		return closed
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return errors.New("another process listens there")
	}
	return os.Remove(path)
}

func (l *listener) close() error {
	if l.fd < 0 {
		return nil
	}
	err := os.Remove(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	err = errors.Join(err, unix.Close(l.fd))
	l.fd = -1
	return err
}

// total is how many connections there are.
func (d *Device) total() int { return len(d.conns) + len(d.portless) }

// newConn is a connection that begins with a socket.
func newConn(fd int) *conn { return &conn{fd: fd, readable: true, burst: 1} }

// canAccept tells whether somebody may be waiting and there is a place.
func (d *Device) canAccept() bool {
	return d.listener.waiting && d.total() < MaxConnections && d.greeters < maxGreeting
}

// acceptSome accepts who is waiting, a batch of them at most: programs that come
// and go as fast as they are accepted must not keep the guest's packets, or a
// Stop, waiting. When there is no place they wait on.
func (d *Device) acceptSome() {
	for n := 0; n < batch && d.canAccept(); n++ {
		fd, _, err := unix.Accept4(d.listener.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch {
		case err == nil:
			d.welcome(newConn(fd))
		case errors.Is(err, unix.EAGAIN):
			d.listener.waiting = false
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
		default:
			// Out of file descriptors or memory: again when a connection
			// has ended, or somebody else comes.
			d.listener.waiting = false
			d.warn(troubleAccept, fmt.Errorf("accept at socket %s: %w", d.cfg.Path, err))
		}
	}
}

// welcome begins with a program of the host that has connected.
func (d *Device) welcome(c *conn) {
	if err := d.watch(c); err != nil {
		d.warn(troubleAccept, fmt.Errorf("accept at socket %s: %w", d.cfg.Path, err))
		_ = unix.Close(c.fd)
		return
	}
	d.portless[c] = struct{}{}
	d.greeters++
	d.greet(c)
}

// watch has the loop look after the socket of a connection. An event only says
// that it is worth a look: it may be of a socket that had the same number.
func (d *Device) watch(c *conn) error {
	return d.loop.Add(c.fd, socketEvents, func(events uint32) {
		if events&unix.EPOLLOUT != 0 {
			d.flush(c)
		}
		if events&^unix.EPOLLOUT != 0 {
			d.socketChanged(c)
		}
		d.serve()
	})
}

// socketChanged looks at a connection whose socket has data, or has lost its
// other end.
func (d *Device) socketChanged(c *conn) {
	switch c.stage {
	case greeting:
		d.greet(c)
	case requested:
		c.readable = true
		if d.hungUp(c) {
			d.abort(c)
		}
	case established:
		c.readable = true
		if c.hostDone&noSend != 0 && d.hungUp(c) {
			d.hostTakesNoMore(c)
		}
		d.settle(c)
	case draining:
		d.flush(c)
	}
}

// greet reads the line that says which port the host's program wants. What
// comes behind it is the guest's.
func (d *Device) greet(c *conn) {
	for {
		// Looked at first, so that not too much is taken.
		n, _, err := unix.Recvfrom(c.fd, d.line[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		end := bytes.IndexByte(d.line[:max(n, 0)], '\n')
		take := end + 1
		if end < 0 {
			take = n
		}
		if err != nil || n == 0 || len(c.line)+take > maxGreetingLine {
			d.forget(c)
			return
		}
		if m, _, err := unix.Recvfrom(c.fd, d.line[:take], unix.MSG_DONTWAIT); err != nil || m != take {
			d.forget(c)
			return
		}
		c.line = append(c.line, d.line[:take]...)
		if end >= 0 {
			d.ask(c)
			return
		}
	}
}

// ask asks the guest for the connection that a program of the host wants.
func (d *Device) ask(c *conn) {
	port, ok := parseGreeting(strings.TrimSuffix(string(c.line), "\n"))
	if !ok {
		d.forget(c)
		return
	}
	delete(d.portless, c)
	d.greeters--
	c.line = nil
	c.ports = d.freePorts(port)
	d.register(c, requested)
	d.owe(c, owesRequest)
}

// parseGreeting parses "CONNECT PORT".
func parseGreeting(line string) (port uint32, ok bool) {
	word, number, _ := strings.Cut(line, " ")
	n, err := strconv.ParseUint(number, 10, 32)
	return uint32(n), strings.EqualFold(word, "CONNECT") && err == nil
}

// freePorts gives a connection to a port of the guest a port on this side.
func (d *Device) freePorts(guest uint32) ports {
	for {
		if d.lastPort++; d.lastPort > lastPort {
			d.lastPort = firstPort
		}
		p := ports{host: d.lastPort, guest: guest}
		if d.conns[p] == nil {
			return p
		}
	}
}
