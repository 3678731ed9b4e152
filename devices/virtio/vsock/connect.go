package vsock

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A program of the host whose queue of waiting connections is full is tried
// again every connectInterval, at most connectTries times: as long as a Linux
// guest waits. There is no event to wait for.
const (
	connectInterval = 5 * time.Millisecond
	connectTries    = 400
)

// connect opens a connection that the guest asks for. It tells whether the
// connection exists; if not, the guest is to be refused.
func (d *Device) connect(p ports, h *header) bool {
	if d.total() >= MaxConnections {
		return false
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		d.warn(troubleSocket, fmt.Errorf("the guest connects to port %d: %w", p.host, err))
		return false
	}
	c := newConn(fd)
	c.ports = p
	c.hear(h)
	switch err := d.tryConnect(c); {
	case err == nil:
		d.register(c, established)
		d.owe(c, owesResponse)
	case errors.Is(err, unix.EAGAIN) && len(d.waiting) < MaxConnections:
		d.register(c, connecting)
		d.wait(c)
	default:
		_ = unix.Close(fd)
		return false
	}
	return true
}

// tryConnect connects the socket of c to the program that listens at the port.
func (d *Device) tryConnect(c *conn) error {
	path := portPath(d.cfg.Path, c.host)
	err := unix.Connect(c.fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		err = d.watch(c)
	}
	if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
		d.warn(troubleConnect, fmt.Errorf("the guest connects to port %d: socket %s: %w", c.host, path, err))
	}
	return err
}

// wait has c tried again after a while.
func (d *Device) wait(c *conn) {
	d.waiting = append(d.waiting, c)
	if len(d.waiting) == 1 {
		d.setTimer(connectInterval)
	}
}

// retry tries again to connect those that wait.
func (d *Device) retry() {
	waiting := d.waiting
	d.waiting = d.waiting[:0]
	for _, c := range waiting {
		if c.stage != connecting {
			continue // the guest has given up
		}
		c.tries++
		switch err := d.tryConnect(c); {
		case err == nil:
			c.stage = established
			d.owe(c, owesResponse)
		case errors.Is(err, unix.EAGAIN) && c.tries < connectTries:
			d.waiting = append(d.waiting, c)
		default:
			d.abort(c)
		}
	}
	clear(waiting[len(d.waiting):])
	if len(d.waiting) > 0 {
		d.setTimer(connectInterval)
	}
	d.serve()
}

// setTimer makes retry run once after a while.
func (d *Device) setTimer(after time.Duration) {
	// There is no error for a timer that exists and a time that is in range.
	_ = unix.TimerfdSettime(d.timer, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(after))}, nil)
}
