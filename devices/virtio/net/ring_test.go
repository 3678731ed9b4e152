package net

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

// ringDriver gives the same chains again and again. It does not allocate, and
// costs less than a virtiotest.Queue.
type ringDriver struct {
	q     *virtiotest.Queue
	mem   *memory.Guest
	heads []uint16
	given uint16 // the avail index
	kicks int
	err   error // about addresses outside memory
}

func newRingDriver(g *guest, q *virtiotest.Queue) ringDriver {
	return ringDriver{q: q, mem: g.Memory.Guest}
}

// give gives the next n chains.
func (r *ringDriver) give(n int) {
	for range n {
		at := r.q.Avail + 4 + 2*memory.GPA(r.given%r.q.Size)
		r.err = errors.Join(r.err, r.mem.PutUint16(at, r.heads[int(r.given)%len(r.heads)]))
		r.given++
	}
	r.err = errors.Join(r.err, r.mem.StoreUint32(r.q.Avail, uint32(r.given)<<16))
	event, err := r.mem.Uint16(r.q.Used + 4 + 8*memory.GPA(r.q.Size))
	r.err = errors.Join(r.err, err)
	if r.given-event-1 < uint16(n) { // §2.7.10
		r.kicks++
		r.q.Kick()
	}
}

// used is the used index.
func (r *ringDriver) used() uint16 {
	x, err := r.mem.LoadUint32(r.q.Used)
	r.err = errors.Join(r.err, err)
	return uint16(x >> 16)
}

// stream keeps the queue full until n chains have gone through it. It polls, as
// a busy driver does.
func (r *ringDriver) stream(n int) {
	for left := 0; n > 0 || left > 0; {
		left = int(r.given - r.used())
		if some := min(n, len(r.heads)-left); some > 0 {
			r.give(some)
			n, left = n-some, left+some
		}
	}
}

// sleepy lets n chains go through the queue, as many at once as there are, and
// sleeps until the last of them interrupts.
func (r *ringDriver) sleepy(n int) {
	for n > 0 {
		some := min(n, len(r.heads))
		r.err = errors.Join(r.err, r.mem.PutUint16(r.q.Avail+4+2*memory.GPA(r.q.Size), r.given+uint16(some)-1))
		r.give(some)
		for r.used() != r.given {
			<-r.q.Interrupted
		}
		n -= some
	}
}

// looper is a driver that sends and receives frames of one size over and over,
// without allocations of its own.
type looper struct {
	g      *guest
	rx, tx ringDriver
	peer   int
	frame  []byte
	read   []byte
}

func newLooper(g *guest, size int) *looper {
	l := &looper{
		g: g, rx: newRingDriver(g, g.rx()), tx: newRingDriver(g, g.tx()), peer: g.wire.peers[0],
		frame: append(make([]byte, headerSize), testFrame(size, 1)...), read: make([]byte, maxFrame),
	}
	l.tx.sendBuffers(g, l.frame)
	l.rx.receiveBuffers(g)
	return l
}

// sendBuffers makes chains that send p, which has a header.
func (r *ringDriver) sendBuffers(g *guest, p []byte) {
	data := g.Memory.Put(p)
	for range r.q.Size / 2 {
		r.heads = append(r.heads, r.q.Chain(virtiotest.Buffer{GPA: data, Len: headerSize},
			virtiotest.Buffer{GPA: data + headerSize, Len: uint32(len(p) - headerSize)}))
	}
}

// receiveBuffers makes chains to receive into.
func (r *ringDriver) receiveBuffers(g *guest) {
	for range r.q.Size {
		r.heads = append(r.heads, r.q.Chain(virtiotest.Buffer{GPA: g.Memory.Alloc(4096, 4096), Len: 4096, Write: true}))
	}
}

// sendMany sends n frames and waits until they are out.
func (l *looper) sendMany(n int) {
	for n > 0 {
		some := min(n, len(l.tx.heads), 3) // what a socket takes of the largest
		l.tx.give(some)
		for range some {
			if _, err := unix.Read(l.peer, l.read); err != nil && !errors.Is(err, unix.EINTR) {
				l.g.t.Fatal(err)
			}
		}
		for l.tx.used() != l.tx.given {
		}
		n -= some
	}
}

// receiveMany receives n frames.
func (l *looper) receiveMany(n int) {
	each := (len(l.frame) + 4095) / 4096
	for range n {
		used := l.rx.used()
		l.rx.give(each)
		if _, err := unix.Write(l.peer, l.frame); err != nil {
			l.g.t.Fatal(err)
		}
		for l.rx.used() != used+uint16(each) {
		}
	}
}
