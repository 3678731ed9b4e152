package vsock

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

// errNoBuffer says that the rx queue is empty.
var errNoBuffer = errors.New("no buffer in the rx queue")

// givePackets gives packets to the guest, and tells whether it, or takePackets,
// can go on at once. What there is no buffer for stays where it is.
func (d *Device) givePackets() (more bool, _ error) {
	if d.reset != resetNone {
		return false, nil
	}
	q := d.drv.Queues[rxQueue]
	defer q.Notify()
	stalled := d.resets.full() // takePackets waits
	for range batch {
		if d.resets.n == 0 && d.ready.first == nil {
			return stalled, nil
		}
		err := d.give(q)
		if errors.Is(err, errNoBuffer) {
			more, err := q.EnableKicks()
			return more || stalled && !d.resets.full(), err
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// give gives what is next: resets of connections that do not exist, and then
// from each connection in turn.
func (d *Device) give(q *virtio.Queue) error {
	if d.resets.n > 0 {
		chain, err := d.buffer(q, 0)
		if err != nil {
			return err
		}
		a := d.resets.take()
		d.put(q, chain, &header{srcCID: a.cid, srcPort: a.host, dstPort: a.guest, op: opReset})
		return nil
	}
	c := d.ready.first
	d.ready.remove(c)
	err := d.giveFrom(q, c)
	if c.busy() {
		d.ready.push(c)
	}
	return err
}

// giveFrom gives what a connection has for the guest: data as long as there is
// some, since that has the credit with it and comes before the end.
func (d *Device) giveFrom(q *virtio.Queue, c *conn) error {
	switch {
	case c.owes&owesReset != 0:
		if err := d.giveControl(q, c, opReset, owesReset); err != nil {
			return err
		}
		d.forget(c)
		return nil
	case c.owes&owesRequest != 0:
		return d.giveControl(q, c, opRequest, owesRequest)
	case c.owes&owesResponse != 0:
		return d.giveControl(q, c, opResponse, owesResponse)
	case c.wantsData() && c.left() > 0:
		return d.giveData(q, c)
	case c.owes&owesShutdown != 0:
		return d.giveControl(q, c, opShutdown, owesShutdown)
	case c.owes&owesCreditUpdate != 0:
		return d.giveControl(q, c, opCreditUpdate, owesCreditUpdate)
	case c.owes&owesCreditRequest != 0:
		return d.giveControl(q, c, opCreditRequest, owesCreditRequest)
	}
	return nil
}

// giveControl gives a packet without data, which settles a debt.
func (d *Device) giveControl(q *virtio.Queue, c *conn, op operation, debt owes) error {
	chain, err := d.buffer(q, 0)
	if err != nil {
		return err
	}
	h := d.headerOf(c, op)
	if op == opShutdown {
		h.flags, c.hostTold = c.hostDone, c.hostDone
	}
	c.owes &^= debt
	d.put(q, chain, &h)
	return nil
}

// giveData reads from the socket into one or more buffers of the guest, as far
// as its credit goes.
func (d *Device) giveData(q *virtio.Queue, c *conn) error {
	var room [maxBurst]uint32
	d.vec.clear()
	buffers := 0
	for credit := c.left(); buffers < c.burst && credit > 0; buffers++ {
		chain, err := d.buffer(q, buffers)
		if errors.Is(err, errNoBuffer) && buffers > 0 {
			break
		}
		if err != nil {
			return err
		}
		if buffers > 0 && len(d.vec.pieces)+len(chain.Write) > maxVector {
			q.Unpop()
			break
		}
		room[buffers] = min(chain.WriteLen-headerSize, credit, maxData)
		credit -= room[buffers]
		d.vec.addBuffers(chain.Write, headerSize, room[buffers])
	}
	n, err := d.vec.readFrom(c.fd)
	d.counts.received.Add(uint64(n))
	used := 0
	for left := uint32(n); left > 0; used++ {
		h := d.headerOf(c, opData)
		h.length = min(left, room[used])
		left -= h.length
		d.put(q, &d.rx[used], &h)
	}
	for range buffers - used {
		q.Unpop()
	}
	c.sent += uint32(n)
	d.gave = d.gave || n > 0
	d.wasRead(c, n, err)
	return nil
}

// wasRead notes what a read from the socket of c says about it.
func (d *Device) wasRead(c *conn, n int, err error) {
	if uint32(n) == d.vec.n {
		c.burst = min(2*c.burst, maxBurst)
	} else {
		c.burst = 1
	}
	switch {
	case errors.Is(err, unix.EAGAIN):
		c.readable = false
	case err != nil:
		d.abort(c)
	case n == 0:
		c.hostDone |= noSend
		if d.hungUp(c) {
			d.hostTakesNoMore(c)
		}
	}
	d.settle(c)
}

// buffer takes a buffer from the rx queue. It has room for data.
func (d *Device) buffer(q *virtio.Queue, i int) (*virtio.Chain, error) {
	chain := &d.rx[i]
	ok, err := q.Pop(chain)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, errNoBuffer
	case chain.WriteLen <= headerSize:
		return nil, fmt.Errorf("buffer of %d bytes in the rx queue: a packet needs more than %d", chain.WriteLen, headerSize)
	}
	q.DisableKicks()
	return chain, nil
}

// headerOf is a header for a packet of c, with its credit.
func (d *Device) headerOf(c *conn, op operation) header {
	h := header{srcCID: HostCID, srcPort: c.host, dstPort: c.guest, op: op}
	c.tell(&h)
	c.owes &^= owesCreditUpdate
	return h
}

// put gives a packet, whose data is in the buffer already, to the guest.
func (d *Device) put(q *virtio.Queue, chain *virtio.Chain, h *header) {
	h.dstCID, h.kind = d.cid, kindStream
	h.encode(&d.raw)
	chain.CopyIn(0, d.raw[:])
	chain.MarkWritten(headerSize + h.length)
	q.Push(chain.Head, headerSize+h.length)
}
