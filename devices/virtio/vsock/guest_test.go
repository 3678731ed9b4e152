package vsock

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

// guest is a guest's socket layer: a driver for the device and stream sockets on
// top of it, as far as the tests need them.
type guest struct {
	t   testing.TB
	drv *virtiotest.Driver
	cid uint64

	mu        sync.Mutex
	change    sync.Cond
	out       []packet // to be sent
	conns     map[ports]*guestConn
	listeners map[uint32]chan *guestConn
	lastPort  uint32
	window    uint32 // receive buffer of new connections
	raw       bool   // the test speaks for itself; what comes is recorded
	seen      []packet
	starve    bool // no buffer goes back to the device

	work, stop chan struct{}
	done       chan struct{}
}

// packet is a header and its data.
type packet struct {
	header
	data []byte
}

const (
	guestBuffers   = 32
	guestBufferLen = 4096 + headerSize
)

// guestConn is a socket of the guest.
type guestConn struct {
	g *guest
	ports
	window uint32

	// All under g.mu.
	state        string // "connecting", "open", "reset"
	in           []byte
	rxCount, fwd uint32 // received, and taken by Read
	told         uint32
	txCount      uint32
	peerAlloc    uint32
	peerFwd      uint32
	peerDone     shutdown
	done         shutdown
}

var errReset = errors.New("connection reset")

// startGuest starts a driver for d. Guest sockets have a window of 64 KiB.
func startGuest(t testing.TB, d *Device, o virtiotest.Options) *guest {
	g := &guest{
		t: t, drv: virtiotest.Start(t, d, o), cid: d.cid,
		conns: make(map[ports]*guestConn), listeners: make(map[uint32]chan *guestConn), lastPort: 5000, window: 64 << 10,
		work: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	g.change.L = &g.mu
	go g.run()
	t.Cleanup(g.close)
	return g
}

func (g *guest) close() {
	select {
	case <-g.stop:
	default:
		close(g.stop)
	}
	<-g.done
}

// run is the driver's one goroutine.
func (g *guest) run() {
	defer close(g.done)
	rx, tx, mem := g.drv.Queues[rxQueue], g.drv.Queues[txQueue], g.drv.Memory
	// In two buffers, as Linux before 6.3 has them, and in one.
	buffers := make(map[uint16][]virtiotest.Buffer)
	add := func(bufs []virtiotest.Buffer) {
		head := rx.Chain(bufs...)
		buffers[head] = bufs
		rx.Publish(head)
	}
	for i := range guestBuffers {
		at := mem.Alloc(guestBufferLen, 8)
		if i%2 == 0 {
			add([]virtiotest.Buffer{{GPA: at, Len: guestBufferLen, Write: true}})
		} else {
			add([]virtiotest.Buffer{{GPA: at, Len: headerSize, Write: true}, {GPA: at + headerSize, Len: guestBufferLen - headerSize, Write: true}})
		}
	}
	rx.Kick()
	var free []memory.GPA
	for range int(tx.Size) / 2 {
		free = append(free, mem.Alloc(headerSize+maxData, 8))
	}
	inFlight := make(map[uint16]memory.GPA)
	var rxSeen, txSeen uint16
	var held [][]virtiotest.Buffer // not given back to the device yet
	for {
		for {
			head, n, ok := rx.Take()
			if !ok {
				break
			}
			rxSeen++
			bufs := buffers[head]
			g.receive(mem.Get(bufs[0].GPA, int(n)))
			held = append(held, bufs)
		}
		if !g.starved() && len(held) > 0 {
			for _, bufs := range held {
				add(bufs)
			}
			held = nil
			rx.Kick()
		}
		for {
			head, _, ok := tx.Take()
			if !ok {
				break
			}
			txSeen++
			free = append(free, inFlight[head])
		}
		sent := false
		for len(free) > 0 {
			p, ok := g.next()
			if !ok {
				break
			}
			at := free[len(free)-1]
			free = free[:len(free)-1]
			var b [headerSize]byte
			p.encode(&b)
			mem.Set(at, b[:])
			bufs := []virtiotest.Buffer{{GPA: at, Len: headerSize}}
			if len(p.data) > 0 {
				mem.Set(at+headerSize, p.data)
				bufs = append(bufs, virtiotest.Buffer{GPA: at + headerSize, Len: uint32(len(p.data))})
			}
			head := tx.Chain(bufs...)
			inFlight[head] = at
			tx.Publish(head)
			sent = true
		}
		if sent {
			tx.Kick()
		}
		rx.SetUsedEvent(rxSeen)
		tx.SetUsedEvent(txSeen)
		rx.SetAvailFlags(0) // a barrier
		if rx.UsedIndex() != rxSeen || tx.UsedIndex() != txSeen {
			continue
		}
		select {
		case <-rx.Interrupted:
		case <-tx.Interrupted:
		case <-g.work:
		case <-g.stop:
			return
		}
	}
}

func (g *guest) starved() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.starve
}

func (g *guest) setStarve(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.starve = on
	g.wake()
}

func (g *guest) next() (packet, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.out) == 0 {
		return packet{}, false
	}
	p := g.out[0]
	if g.out = g.out[1:]; len(g.out) == 64 {
		g.change.Broadcast()
	}
	return p, true
}

// send queues a packet as it is.
func (g *guest) send(p packet) {
	g.mu.Lock()
	g.queue(p)
	g.mu.Unlock()
}

// queue is send for those that hold mu.
func (g *guest) queue(p packet) {
	g.out = append(g.out, p)
	g.wake()
}

func (g *guest) wake() {
	select {
	case g.work <- struct{}{}:
	default:
	}
}

// receive takes a packet of the device.
func (g *guest) receive(b []byte) {
	var p packet
	p.decode((*[headerSize]byte)(b))
	p.data = b[headerSize:]
	g.mu.Lock()
	defer g.mu.Unlock()
	defer g.change.Broadcast()
	if g.raw {
		g.seen = append(g.seen, p)
		return
	}
	if p.srcCID != HostCID || p.dstCID != g.cid || p.kind != kindStream || int(p.length) != len(p.data) {
		g.t.Errorf("the device sent %+v with %d bytes", p.header, len(p.data))
	}
	k := ports{host: p.srcPort, guest: p.dstPort}
	c := g.conns[k]
	if c == nil {
		backlog := g.listeners[k.guest]
		switch {
		case p.op == opRequest && backlog != nil:
			c = &guestConn{g: g, ports: k, window: g.window, state: "open"}
			g.conns[k] = c
			c.hear(&p)
			c.control(opResponse, 0)
			backlog <- c
		case p.op != opReset:
			g.queue(packet{header: header{srcCID: g.cid, dstCID: HostCID, srcPort: k.guest, dstPort: k.host, kind: kindStream, op: opReset}})
		}
		return
	}
	c.hear(&p)
	switch p.op {
	case opResponse:
		c.state = "open"
	case opReset:
		c.state = "reset"
		delete(g.conns, k)
	case opShutdown:
		c.peerDone |= p.flags
		c.maybeGone()
	case opData:
		c.in = append(c.in, p.data...)
		c.rxCount += p.length
		if c.rxCount-c.fwd > c.window {
			g.t.Errorf("the device sent %d bytes into a window of %d", c.rxCount-c.fwd, c.window)
		}
	case opCreditRequest:
		c.control(opCreditUpdate, 0)
	case opCreditUpdate:
	default:
		g.t.Errorf("the device sent operation %d", p.op)
	}
}

func (c *guestConn) hear(p *packet) { c.peerAlloc, c.peerFwd = p.bufAlloc, p.fwdCnt }

// maybeGone confirms the end of the connection when all is read.
func (c *guestConn) maybeGone() {
	if c.peerDone == noMore && len(c.in) == 0 && c.state == "open" {
		c.control(opReset, 0)
		c.state = "closed"
		delete(c.g.conns, c.ports)
	}
}

// control sends a packet without data. The caller holds mu.
func (c *guestConn) control(op operation, flags shutdown) {
	h := c.header(op)
	h.flags = flags
	c.g.queue(packet{header: h})
}

func (c *guestConn) header(op operation) header {
	c.told = c.fwd
	return header{
		srcCID: c.g.cid, dstCID: HostCID, srcPort: c.guest, dstPort: c.host, kind: kindStream, op: op,
		bufAlloc: c.window, fwdCnt: c.fwd,
	}
}

// dial connects to a port of the host.
func (g *guest) dial(port uint32) (*guestConn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lastPort++
	c := &guestConn{g: g, ports: ports{host: port, guest: g.lastPort}, window: g.window, state: "connecting"}
	g.conns[c.ports] = c
	c.control(opRequest, 0)
	for c.state == "connecting" {
		g.change.Wait()
	}
	if c.state == "reset" {
		return nil, fmt.Errorf("dial port %d: %w", port, errReset)
	}
	return c, nil
}

// listen gives the connections to a port of the guest.
func (g *guest) listen(port uint32) <-chan *guestConn {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := make(chan *guestConn, MaxConnections)
	g.listeners[port] = l
	return l
}

func (c *guestConn) Read(p []byte) (int, error) {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	for len(c.in) == 0 {
		if c.state == "reset" {
			return 0, errReset
		}
		if c.peerDone&noSend != 0 {
			return 0, io.EOF
		}
		c.g.change.Wait()
	}
	n := copy(p, c.in)
	c.in = c.in[n:]
	c.fwd += uint32(n)
	c.maybeGone()
	if c.state == "open" && c.fwd-c.told >= c.window/2 {
		c.control(opCreditUpdate, 0)
	}
	return n, nil
}

func (c *guestConn) Write(p []byte) (int, error) {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	done := 0
	for len(p) > 0 {
		credit := c.peerAlloc - (c.txCount - c.peerFwd)
		switch {
		case c.state == "reset":
			return done, errReset
		case c.peerDone&noReceive != 0 || c.state != "open":
			return done, io.ErrClosedPipe
		case credit == 0 || len(c.g.out) > 64:
			c.g.change.Wait()
			continue
		}
		n := min(len(p), int(credit), maxData)
		h := c.header(opData)
		h.length = uint32(n)
		c.g.queue(packet{header: h, data: append([]byte(nil), p[:n]...)})
		c.txCount += uint32(n)
		done += n
		p = p[n:]
	}
	return done, nil
}

// shutdown says what this side does no more.
func (c *guestConn) shutdown(s shutdown) {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	if c.state == "open" {
		c.done |= s
		c.control(opShutdown, s)
	}
}

// awaitEnd waits until the connection is gone.
func (c *guestConn) awaitEnd() {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	for c.state == "open" {
		c.g.change.Wait()
	}
}
