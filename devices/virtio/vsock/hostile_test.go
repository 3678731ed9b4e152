package vsock

import (
	"errors"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

// attack is a driver without a socket layer of its own: a test says each packet.
type attack struct {
	*guest
	d *Device
}

func startAttack(t *testing.T, o virtiotest.Options) *attack {
	d := newDevice(t)
	g := startGuest(t, d, o)
	g.mu.Lock()
	g.raw = true
	g.mu.Unlock()
	return &attack{g, d}
}

// say sends a packet of guest port 1 to host port 2 with what differs from that.
func (a *attack) say(op operation, edit func(p *packet)) {
	p := packet{header: header{
		srcCID: MinCID, dstCID: HostCID, srcPort: 1, dstPort: 2, kind: kindStream, op: op, bufAlloc: 1 << 20,
	}}
	if edit != nil {
		edit(&p)
	}
	a.send(p)
}

func data(n int) func(*packet) {
	return func(p *packet) { p.data, p.length = make([]byte, n), uint32(n) }
}

// sync waits until the device has taken all that was said, by a connection to
// nobody that it has to refuse.
func (a *attack) sync() {
	a.say(opRequest, func(p *packet) { p.srcPort, p.dstPort = 0xffff, 0xffff })
	for {
		if p := a.await(opReset); p.dstPort == 0xffff {
			return
		}
	}
}

// sent is what the device has sent since the last time.
func (a *attack) sent() []packet {
	a.sync()
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.seen
	a.seen = nil
	return s
}

// TestOutsiders has packets that belong to no connection.
func TestOutsiders(t *testing.T) {
	a := startAttack(t, virtiotest.Options{})
	for name, tt := range map[string]struct {
		op    operation
		edit  func(*packet)
		reset bool
	}{
		"another guest's CID": {opRequest, func(p *packet) { p.srcCID = 9 }, false},
		"the host's CID":      {opRequest, func(p *packet) { p.srcCID = HostCID }, false},
		"to another guest":    {opRequest, func(p *packet) { p.dstCID = 4 }, true},
		"to itself":           {opRequest, func(p *packet) { p.dstCID = MinCID }, true},
		"to a large CID":      {opRequest, func(p *packet) { p.dstCID = HostCID | 1<<32 }, true},
		"datagram":            {opRequest, func(p *packet) { p.kind = 3 }, true},
		"seqpacket":           {opRequest, func(p *packet) { p.kind = 2 }, true},
		"nobody listens":      {opRequest, nil, true},
		"operation 0":         {0, nil, true},
		"operation 99":        {99, nil, true},
		"data":                {opData, data(100), true},
		"data to nowhere":     {opData, func(p *packet) { data(10)(p); p.dstCID = 7 }, true},
		"response":            {opResponse, nil, true},
		"shutdown":            {opShutdown, func(p *packet) { p.flags = noMore }, true},
		"credit update":       {opCreditUpdate, nil, true},
		"credit request":      {opCreditRequest, nil, true},
		"reset":               {opReset, nil, false},
		"reset to nowhere":    {opReset, func(p *packet) { p.dstCID = 7 }, false},
	} {
		t.Run(name, func(t *testing.T) {
			a.mu.Lock()
			a.seen = nil
			a.mu.Unlock()
			asked := header{dstCID: HostCID, dstPort: 2}
			a.say(tt.op, func(p *packet) {
				if tt.edit != nil {
					tt.edit(p)
				}
				asked.dstCID = p.dstCID
			})
			a.say(opRequest, func(p *packet) { p.srcPort, p.dstPort = 0xffff, 0xffff })
			p := a.await(opReset)
			if answered := p.dstPort == 1; answered != tt.reset {
				t.Fatalf("answer %+v; a reset is wanted: %v", p.header, tt.reset)
			}
			if tt.reset {
				if p.srcCID != asked.dstCID || p.srcPort != 2 || p.dstCID != MinCID {
					t.Errorf("the reset is %+v", p.header)
				}
				a.await(opReset)
			}
		})
	}
}

// open opens a connection of guest port 1 to host port 2.
func (a *attack) open(l net.Listener) net.Conn {
	a.t.Helper()
	a.say(opRequest, nil)
	a.await(opResponse)
	c, err := l.Accept()
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { c.Close() })
	return c
}

// TestInsiders has packets of a connection that break its rules: that ends the
// connection, and nothing else.
func TestInsiders(t *testing.T) {
	a := startAttack(t, virtiotest.Options{})
	l := listenHost(t, a.d, 2)
	for name, attack := range map[string]func(){
		"second request": func() { a.say(opRequest, nil) },
		"response":       func() { a.say(opResponse, nil) },
		"operation 0":    func() { a.say(0, nil) },
		"operation 8":    func() { a.say(8, nil) },
		"more than credit": func() {
			for range 8 {
				a.say(opData, data(maxData))
			}
		},
		"data after the end": func() {
			a.say(opShutdown, func(p *packet) { p.flags = noSend })
			a.say(opData, data(1))
		},
		"the end twice": func() {
			a.say(opShutdown, func(p *packet) { p.flags = noSend })
			a.say(opShutdown, func(p *packet) { p.flags = noMore | 1<<31 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := a.open(l)
			attack()
			if p := a.await(opReset); p.srcPort != 2 || p.dstPort != 1 {
				t.Errorf("got %+v", p.header)
			}
			// The host's end is closed.
			buf := make([]byte, 1<<20)
			for {
				if _, err := c.Read(buf); err != nil {
					break
				}
			}
		})
	}
	a.sync()
	a.drv.Stop()
	if n := a.d.total(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
	a.drv.Resume()
}

// TestCreditLies has a guest that says more or less of its buffer than is true:
// the device holds to what it says as far as that makes sense.
func TestCreditLies(t *testing.T) {
	a := startAttack(t, virtiotest.Options{})
	l := listenHost(t, a.d, 2)
	received := func(packets []packet) (n int) {
		for _, p := range packets {
			if p.op == opData && p.dstPort == 1 {
				n += len(p.data)
			}
		}
		return n
	}
	t.Run("no credit", func(t *testing.T) {
		a.say(opRequest, func(p *packet) { p.bufAlloc = 0 })
		a.await(opResponse)
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write(make([]byte, 1000))
		a.await(opCreditRequest)
		if n := received(a.sent()); n != 0 {
			t.Errorf("%d bytes without credit", n)
		}
		a.say(opCreditUpdate, func(p *packet) { p.bufAlloc = 600 })
		if p := a.await(opData); len(p.data) != 600 {
			t.Errorf("%d bytes with a credit of 600", len(p.data))
		}
		// It says to have forwarded more than there was.
		a.say(opCreditUpdate, func(p *packet) { p.bufAlloc, p.fwdCnt = 1<<20, 5000 })
		if n := received(a.sent()); n != 0 {
			t.Errorf("%d bytes to a guest that counts wrong", n)
		}
		// It takes a part of its buffer away.
		a.say(opCreditUpdate, func(p *packet) { p.bufAlloc, p.fwdCnt = 100, 400 })
		if n := received(a.sent()); n != 0 {
			t.Errorf("%d bytes into a full buffer", n)
		}
		a.say(opCreditUpdate, func(p *packet) { p.bufAlloc, p.fwdCnt = 1<<32-1, 600 })
		if p := a.await(opData); len(p.data) != 400 {
			t.Errorf("%d bytes, want the rest, 400", len(p.data))
		}
		a.say(opReset, nil)
	})
	t.Run("asks for credit", func(t *testing.T) {
		a.open(l)
		a.say(opData, data(777))
		a.say(opCreditRequest, nil)
		if p := a.await(opCreditUpdate); p.fwdCnt != 777 || p.bufAlloc != largeWindow {
			t.Errorf("got %+v", p.header)
		}
		a.say(opReset, nil)
	})
}

// TestFlood has more connections to nobody than there is room for answers, and
// no buffers for them: all are answered in the end.
func TestFlood(t *testing.T) {
	a := startAttack(t, virtiotest.Options{})
	a.setStarve(true)
	const n = 3 * maxResets
	for i := range uint32(n) {
		a.say(opRequest, func(p *packet) { p.srcPort = i })
	}
	a.setStarve(false)
	for i := range uint32(n) {
		if p := a.await(opReset); p.dstPort != i {
			t.Fatalf("reset %d is for port %d", i, p.dstPort)
		}
	}
}

// TestBrokenChains has chains that are no packets: the device fails, and serves
// again after a reset.
func TestBrokenChains(t *testing.T) {
	// Each is served by hand, without the guest's goroutine.
	for name, tt := range map[string]struct {
		attack func(drv *virtiotest.Driver)
		want   string
	}{
		"short header": {func(drv *virtiotest.Driver) {
			tx := drv.Queues[txQueue]
			tx.Publish(tx.Chain(virtiotest.Buffer{GPA: drv.Memory.Alloc(64, 8), Len: headerSize - 1}))
			tx.Kick()
		}, "less than its header"},
		"header to be written": {func(drv *virtiotest.Driver) {
			tx := drv.Queues[txQueue]
			tx.Publish(tx.Chain(virtiotest.Buffer{GPA: drv.Memory.Alloc(64, 8), Len: 64, Write: true}))
			tx.Kick()
		}, "less than its header"},
		"length beyond the chain": {func(drv *virtiotest.Driver) {
			tx := drv.Queues[txQueue]
			h := header{srcCID: MinCID, dstCID: HostCID, kind: kindStream, op: opData, length: 21}
			var b [headerSize]byte
			h.encode(&b)
			at := drv.Memory.Alloc(64, 8)
			drv.Memory.Set(at, b[:])
			tx.Publish(tx.Chain(virtiotest.Buffer{GPA: at, Len: 64}))
			tx.Kick()
		}, "21 bytes of data"},
		"buffer outside of memory": {func(drv *virtiotest.Driver) {
			tx := drv.Queues[txQueue]
			tx.Publish(tx.Chain(virtiotest.Buffer{GPA: 1 << 40, Len: 64}))
			tx.Kick()
		}, virtio.ErrBroken.Error()},
		"avail index": {func(drv *virtiotest.Driver) {
			rx := drv.Queues[rxQueue]
			rx.SetAvailIndex(rx.Size + 1)
			rx.Kick()
			refused(drv)
		}, virtio.ErrBroken.Error()},
		"small buffer": {func(drv *virtiotest.Driver) {
			rx := drv.Queues[rxQueue]
			rx.Publish(rx.Chain(virtiotest.Buffer{GPA: drv.Memory.Alloc(64, 8), Len: headerSize, Write: true}))
			refused(drv)
		}, "buffer of 44 bytes"},
		"buffer to be read": {func(drv *virtiotest.Driver) {
			rx := drv.Queues[rxQueue]
			rx.Publish(rx.Chain(virtiotest.Buffer{GPA: drv.Memory.Alloc(64, 8), Len: 64}))
			refused(drv)
		}, "buffer of 0 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDevice(t)
			drv := virtiotest.Start(t, d, virtiotest.Options{})
			c, err := net.Dial("unix", d.cfg.Path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			tt.attack(drv)
			if err := drv.AwaitFail(); !strings.Contains(err.Error(), tt.want) {
				t.Errorf("failed with %v, want %q", err, tt.want)
			}
			drv.Reset()
			tx, rx := drv.Queues[txQueue], drv.Queues[rxQueue]
			rx.Publish(rx.Chain(virtiotest.Buffer{GPA: drv.Memory.Alloc(64, 8), Len: 64, Write: true}))
			refused(drv)
			if _, n := rx.Wait(); n != headerSize {
				t.Errorf("after a reset: answer of %d bytes", n)
			}
			tx.Wait()
		})
	}
}

// refused sends a packet that is answered by a reset.
func refused(drv *virtiotest.Driver) {
	h := header{srcCID: MinCID, dstCID: HostCID, kind: kindStream, op: opData}
	var b [headerSize]byte
	h.encode(&b)
	at := drv.Memory.Alloc(headerSize, 8)
	drv.Memory.Set(at, b[:])
	tx := drv.Queues[txQueue]
	tx.Publish(tx.Chain(virtiotest.Buffer{GPA: at, Len: headerSize}))
	tx.Kick()
}

// TestMissingQueue has a driver that sets up too little.
func TestMissingQueue(t *testing.T) {
	d := newDevice(t)
	mem := virtiotest.NewMemory(t, 1<<20)
	err := d.Start(virtio.Driver{Mem: mem.Guest, Queues: make([]*virtio.Queue, 3), Fail: func(error) {}})
	if err == nil {
		t.Error("no error without queues")
	}
	d.Stop()
	if err := errors.Join(d.Close()); err != nil {
		t.Error(err)
	}
}

// TestAcceptTurn has many programs that come and go at once: a turn of accepting
// them ends, whoever comes next, so that they cannot keep Stop waiting.
func TestAcceptTurn(t *testing.T) {
	d := newDevice(t)
	const callers = 3 * batch
	for range callers {
		c, err := net.Dial("unix", d.cfg.Path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	d.acceptSome()
	left := 0
	for {
		fd, _, err := unix.Accept4(d.listener.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			break
		}
		left++
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	}
	if left != callers-batch {
		t.Errorf("%d of %d callers wait for the next turn, want %d", left, callers, callers-batch)
	}
	if !d.canAccept() {
		t.Error("those that are left are forgotten")
	}
}
