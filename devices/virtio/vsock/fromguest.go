package vsock

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

// takePackets takes packets from the guest, and tells whether there are more
// that can be taken now.
func (d *Device) takePackets() (more bool, _ error) {
	q := d.drv.Queues[txQueue]
	q.DisableKicks()
	defer q.Notify()
	for range batch {
		if d.resets.full() {
			return false, nil // givePackets says when it goes on
		}
		ok, err := q.Pop(&d.tx)
		if err != nil {
			return false, err
		}
		if !ok {
			return q.EnableKicks()
		}
		if err := d.take(&d.tx); err != nil {
			return false, err
		}
		q.Push(d.tx.Head, 0)
	}
	return true, nil
}

// take takes one packet. An error is about a chain that is no packet; what
// breaks the rules of a connection costs only that connection.
func (d *Device) take(chain *virtio.Chain) error {
	if n := chain.CopyOut(0, d.raw[:]); n < headerSize {
		return fmt.Errorf("packet of %d bytes, less than its header", n)
	}
	var h header
	h.decode(&d.raw)
	if h.length > chain.ReadLen-headerSize {
		return fmt.Errorf("packet with %d bytes of data in a chain with room for %d", h.length, chain.ReadLen-headerSize)
	}
	if h.srcCID != d.cid {
		return nil // an answer could not go to whoever this claims to be
	}
	p := ports{host: h.dstPort, guest: h.srcPort}
	if h.dstCID != HostCID || h.kind != kindStream {
		d.refuse(p, &h)
		return nil
	}
	c := d.conns[p]
	if c == nil {
		if h.op != opRequest || !d.connect(p, &h) {
			d.refuse(p, &h)
		}
		return nil
	}
	d.takeFor(c, &h, chain)
	return nil
}

// refuse answers a packet that belongs to no connection (§5.10.6.4). The caller
// has checked that the answer has a place.
func (d *Device) refuse(p ports, h *header) {
	if h.op != opReset {
		d.resets.put(address{p, h.dstCID})
	}
}

// takeFor takes a packet of a connection.
func (d *Device) takeFor(c *conn, h *header, chain *virtio.Chain) {
	if h.bufAlloc != c.peerAlloc || h.fwdCnt != c.peerForwarded {
		c.hear(h)
		c.asked = false
	}
	switch {
	case h.op == opReset:
		d.guestReset(c)
		return
	case c.stage == dying:
		return // sent before the guest has heard of it
	case c.stage == requested && h.op == opResponse && c.owes&owesRequest == 0:
		d.accepted(c)
	case c.stage != established:
		d.abort(c)
	case h.op == opShutdown:
		c.guestDone |= h.flags & noMore
	case h.op == opData && c.guestDone&noSend == 0:
		d.takeData(c, h.length, chain)
	case h.op == opCreditRequest:
		d.owe(c, owesCreditUpdate)
	case h.op == opCreditUpdate:
	default:
		d.abort(c)
	}
	d.settle(c)
}

// accepted tells the host's program that the guest has accepted its connection.
func (d *Device) accepted(c *conn) {
	c.stage = established
	line := append(d.line[:0], "OK "...)
	line = append(strconv.AppendUint(line, uint64(c.host), 10), '\n')
	// The first bytes that go into a socket: there is room.
	if n, err := unix.Write(c.fd, line); err != nil || n != len(line) {
		d.abort(c)
	}
}

// takeData passes n bytes on to the host. What the socket does not take waits.
func (d *Device) takeData(c *conn, n uint32, chain *virtio.Chain) {
	if c.hostDone&noReceive != 0 {
		c.forwarded += n // sent before the guest has heard of it
		return
	}
	if uint64(c.pending.n)+uint64(n) > uint64(c.alloc) {
		d.abort(c) // more than it has credit for (§5.10.6.3.1)
		return
	}
	d.counts.sent.Add(uint64(n))
	d.vec.clear()
	d.vec.addBuffers(chain.Read, headerSize, n)
	sent := 0
	if c.pending.n == 0 && n > 0 {
		var err error
		if sent, err = d.vec.writeTo(c.fd); err != nil && !errors.Is(err, unix.EAGAIN) {
			c.forwarded += n
			d.hostTakesNoMore(c)
			return
		}
	}
	c.forwarded += uint32(sent)
	if uint32(sent) < n {
		if c.pending.data == nil {
			c.pending.data = d.window(c)
		}
		c.pending.putRest(&d.vec, sent)
		d.block(c, true)
	}
	d.oweCredit(c)
}

// flush passes on what was waiting for the socket.
func (d *Device) flush(c *conn) {
	if c.pending.n == 0 || c.fd < 0 {
		return
	}
	for c.pending.n > 0 {
		a, b := c.pending.filled()
		d.vec.clear()
		d.vec.add(a)
		d.vec.add(b)
		n, err := d.vec.writeTo(c.fd)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			d.hostTakesNoMore(c)
			break
		}
		c.pending.drop(n)
		c.forwarded += uint32(n)
	}
	if c.pending.n == 0 {
		d.release(c)
		d.block(c, false)
		if c.stage == draining {
			d.forget(c)
			return
		}
	}
	d.oweCredit(c)
	d.settle(c)
}

// block has the loop wait for the socket to take more, or not any more.
func (d *Device) block(c *conn, blocked bool) {
	if c.blocked == blocked || c.fd < 0 {
		return
	}
	c.blocked = blocked
	events := uint32(socketEvents)
	if blocked {
		events |= unix.EPOLLOUT
	}
	// There is no error for a descriptor that was added.
	_ = d.loop.Modify(c.fd, events)
}

// window is memory for what waits for the socket of c.
func (d *Device) window(c *conn) []byte {
	if n := len(d.spare); n > 0 && c.alloc == largeWindow {
		w := d.spare[n-1]
		d.spare = d.spare[:n-1]
		return w
	}
	return make([]byte, c.alloc)
}

// release gives up the memory of what waited for the socket of c, and what is
// still in it.
func (d *Device) release(c *conn) {
	if len(c.pending.data) == largeWindow && len(d.spare) < maxSpare {
		d.spare = append(d.spare, c.pending.data)
	}
	c.pending = ring{}
}
