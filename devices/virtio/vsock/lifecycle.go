package vsock

import (
	"golang.org/x/sys/unix"
)

// register gives a connection that has its ports a place in the table.
func (d *Device) register(c *conn, s stage) {
	d.counts.opened.Add(1)
	c.stage = s
	c.alloc = smallWindow
	if d.large < largeWindows {
		d.large++
		c.alloc = largeWindow
	}
	d.conns[c.ports] = c
}

// owe notes that the guest is to get a packet.
func (d *Device) owe(c *conn, o owes) {
	c.owes |= o
	d.ready.push(c)
}

// oweCredit tells the guest of its credit if it may be waiting for that.
func (d *Device) oweCredit(c *conn) {
	if c.stage == established && c.owed() {
		d.owe(c, owesCreditUpdate)
	}
}

// settle follows up on any change of an established connection: each side gets
// to know what the other will not do any more, in its turn behind the data.
func (d *Device) settle(c *conn) {
	if c.stage != established {
		return
	}
	if c.guestDone&noSend != 0 && c.pending.n == 0 {
		d.passOn(c, noSend, unix.SHUT_WR)
	}
	if c.guestDone&noReceive != 0 {
		d.passOn(c, noReceive, unix.SHUT_RD)
		c.hostDone |= noSend
	}
	if c.guestDone == noMore && c.pending.n == 0 {
		d.abort(c) // that is how an orderly end is confirmed (§5.10.6.5)
		return
	}
	if c.hostDone != c.hostTold {
		d.owe(c, owesShutdown)
	}
	if c.hostDone == noMore {
		d.closeSocket(c)
	}
	switch {
	case !c.wantsData():
	case c.left() > 0:
		d.ready.push(c)
	case !c.asked:
		c.asked = true
		d.owe(c, owesCreditRequest)
	}
}

// passOn tells the socket what the guest will not do any more.
func (d *Device) passOn(c *conn, s shutdown, how int) {
	if c.passedOn&s == 0 && c.fd >= 0 {
		c.passedOn |= s
		// An error says that the other end is gone, which the loop sees.
		_ = unix.Shutdown(c.fd, how)
		if s == noReceive {
			discard(c.fd)
		}
	}
}

// discard drops what is in a socket to which nobody can write any more. Who
// waits for room in it learns only thereby that there is no use.
func discard(fd int) {
	p := make([]byte, 64<<10)
	for {
		if n, err := unix.Read(fd, p); n <= 0 || err != nil {
			return
		}
	}
}

// hostTakesNoMore notes that nobody reads at the other end of the socket.
func (d *Device) hostTakesNoMore(c *conn) {
	c.forwarded += uint32(c.pending.n)
	d.release(c)
	d.block(c, false)
	c.hostDone |= noReceive
}

// hungUp tells whether the socket has come to its end in both directions.
func (d *Device) hungUp(c *conn) bool {
	fds := [1]unix.PollFd{{Fd: int32(c.fd)}}
	n, err := unix.Poll(fds[:], 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

// abort ends a connection: the socket is closed at once, and the guest is told
// if it knows of the connection.
func (d *Device) abort(c *conn) {
	if c.stage == greeting || c.stage == requested && c.owes&owesRequest != 0 {
		d.forget(c)
		return
	}
	d.closeSocket(c)
	d.release(c)
	c.stage = dying
	c.owes = owesReset
	d.ready.push(c)
}

// guestReset ends a connection that the guest has ended. What the guest sent
// before it said that it was at its end still goes to the host.
func (d *Device) guestReset(c *conn) {
	if c.pending.n == 0 || c.guestDone&noSend == 0 {
		d.forget(c)
		return
	}
	d.ready.remove(c)
	delete(d.conns, c.ports)
	d.portless[c] = struct{}{}
	c.stage, c.owes = draining, 0
}

// forget removes a connection.
func (d *Device) forget(c *conn) {
	d.closeSocket(c)
	d.release(c)
	d.ready.remove(c)
	switch c.stage {
	case greeting:
		delete(d.portless, c)
		d.greeters--
	case draining:
		delete(d.portless, c)
		d.counts.closed.Add(1)
	default:
		delete(d.conns, c.ports)
		d.counts.closed.Add(1)
	}
	if c.alloc == largeWindow {
		d.large--
	}
	c.stage, c.owes = dying, 0
	d.listener.waiting = true // there is a place now
}

func (d *Device) closeSocket(c *conn) {
	if c.fd >= 0 {
		// An error says that the loop does not wait for it: it never was
		// connected.
		_ = d.loop.Remove(c.fd)
		_ = unix.Close(c.fd)
		c.fd = -1
	}
}

// closeAll ends all connections without a word to the guest.
func (d *Device) closeAll() {
	for c := range d.portless {
		d.forget(c)
	}
	for _, c := range d.conns {
		d.forget(c)
	}
	d.resets, d.waiting = resets{}, nil
}
