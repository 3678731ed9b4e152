package vsock

import (
	"encoding/binary"
	"runtime"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

// polling is a driver with one connection, opened by the guest, that polls its
// queues and does not allocate: what it measures is the device.
type polling struct {
	drv    *virtiotest.Driver
	d      *Device
	host   int // the host's end of the connection
	rx, tx ringPair
	// The one packet that the guest sends again and again.
	packet []byte
	head   uint16
	// forwarded counts the data that the guest has had.
	forwarded uint32
}

// ringPair is the driver's view of a queue's rings.
type ringPair struct {
	size        uint16
	avail, used []byte
	next, seen  uint16
	kick        func()
}

func newRingPair(q *virtiotest.Queue, mem *virtiotest.Memory) ringPair {
	r := ringPair{size: q.Size, kick: q.Kick, next: q.AvailIndex(), seen: q.UsedIndex()}
	r.avail, _ = mem.Slice(q.Avail, 6+2*uint64(q.Size))
	r.used, _ = mem.Slice(q.Used, 6+8*uint64(q.Size))
	return r
}

func word(b []byte) *uint32 { return (*uint32)(unsafe.Pointer(&b[0])) }

// publish hands a chain to the device.
func (r *ringPair) publish(head uint16) {
	binary.LittleEndian.PutUint16(r.avail[4+2*(r.next%r.size):], head)
	r.next++
	atomic.StoreUint32(word(r.avail), uint32(r.next)<<16)
}

// take gives the next chain that the device has used.
func (r *ringPair) take() (head uint16, n uint32, ok bool) {
	if uint16(atomic.LoadUint32(word(r.used))>>16) == r.seen {
		return 0, 0, false
	}
	e := r.used[4+8*(r.seen%r.size):]
	r.seen++
	return binary.LittleEndian.Uint16(e), binary.LittleEndian.Uint32(e[4:]), true
}

func newPolling(t testing.TB, rxBuffer int) *polling {
	d := newDevice(t)
	drv := virtiotest.Start(t, d, virtiotest.Options{})
	p := &polling{drv: drv, d: d}
	rx, tx, mem := drv.Queues[rxQueue], drv.Queues[txQueue], drv.Memory

	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: d.cfg.Path + "_2"}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	var h [headerSize]byte
	(&header{srcCID: MinCID, dstCID: HostCID, srcPort: 1, dstPort: 2, kind: kindStream, op: opRequest, bufAlloc: 1 << 20}).encode(&h)
	tx.Do([][]byte{h[:]})
	if p.host, _, err = unix.Accept4(fd, unix.SOCK_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p.host) })

	p.rx = newRingPair(rx, mem)
	for range 64 {
		at := mem.Alloc(uint64(rxBuffer), 8)
		p.rx.publish(rx.Chain(virtiotest.Buffer{GPA: at, Len: uint32(rxBuffer), Write: true}))
	}
	at := mem.Alloc(headerSize+maxData, 8)
	p.packet, _ = mem.Slice(at, headerSize+maxData)
	p.head = tx.Chain(virtiotest.Buffer{GPA: at, Len: headerSize + maxData})
	p.tx = newRingPair(tx, mem)
	p.rx.kick()
	for {
		if head, _, ok := p.rx.take(); ok { // the response
			p.rx.publish(head)
			return p
		}
		runtime.Gosched()
	}
}

// byHand takes the device from its loop: the test serves it.
func (p *polling) byHand(t testing.TB) {
	p.drv.Stop()
	drv := virtio.Driver{Mem: p.drv.Memory.Guest, Features: p.drv.Features, Fail: func(err error) { t.Error(err) }}
	for i := range p.d.QueueSizes() {
		q := p.drv.Device(i)
		q.Hold(false)
		drv.Queues = append(drv.Queues, q)
	}
	if err := p.d.attach(drv); err != nil {
		t.Fatal(err)
	}
}

// send has the guest send n bytes.
func (p *polling) send(n int) {
	h := header{
		srcCID: MinCID, dstCID: HostCID, srcPort: 1, dstPort: 2, kind: kindStream, op: opData, length: uint32(n),
		bufAlloc: 1 << 20, fwdCnt: p.forwarded,
	}
	h.encode((*[headerSize]byte)(p.packet))
	p.tx.publish(p.head)
}

// receive takes in what the device has sent, and gives the number of bytes of
// data.
func (p *polling) receive() (n int) {
	for {
		head, m, ok := p.rx.take()
		if !ok {
			return n
		}
		n += int(m) - headerSize
		p.forwarded += m - headerSize
		p.rx.publish(head)
	}
}

// TestNoAllocations: a packet costs none, in either direction, also when the
// host's socket is full.
func TestNoAllocations(t *testing.T) {
	p := newPolling(t, 4096)
	p.byHand(t)
	buf := make([]byte, 1<<20)
	check := func(name string, f func()) {
		if n := testing.AllocsPerRun(200, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	conn := p.d.conns[ports{host: 2, guest: 1}]
	check("to the host", func() {
		p.send(1000)
		p.d.serve()
		if n, err := unix.Read(p.host, buf); n != 1000 || err != nil {
			t.Fatalf("the host got %d bytes, %v", n, err)
		}
	})
	check("to the guest", func() {
		if _, err := unix.Write(p.host, buf[:20000]); err != nil {
			t.Fatal(err)
		}
		p.send(1) // with the guest's credit
		p.d.socketChanged(conn)
		p.d.serve()
		if n := p.receive(); n != 20000 {
			t.Fatalf("the guest got %d bytes", n)
		}
		if n, err := unix.Read(p.host, buf); n != 1 || err != nil {
			t.Fatalf("the host got %d bytes, %v", n, err)
		}
	})
	check("to a full socket", func() {
		for conn.pending.n == 0 {
			p.send(maxData)
			p.d.serve()
		}
		for conn.pending.n > 0 {
			if _, err := unix.Read(p.host, buf); err != nil {
				t.Fatal(err)
			}
			p.d.flush(conn)
		}
		p.d.serve()
		p.receive()
	})
}

// BenchmarkEcho is the round trip of one byte from the guest to a program that
// echoes it, without the doorbell's exit and the interrupt.
func BenchmarkEcho(b *testing.B) {
	p := newPolling(b, 4096)
	go echo(p.host)
	b.ReportAllocs()
	for b.Loop() {
		p.send(1)
		p.tx.kick()
		for p.receive() == 0 {
		}
	}
}

// BenchmarkSocketEcho is the floor of BenchmarkEcho: the same with a socket in
// the place of the device.
func BenchmarkSocketEcho(b *testing.B) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	go echo(fds[1])
	p := make([]byte, 1)
	for b.Loop() {
		if _, err := unix.Write(fds[0], p); err != nil {
			b.Fatal(err)
		}
		if _, err := unix.Read(fds[0], p); err != nil {
			b.Fatal(err)
		}
	}
	unix.Close(fds[0])
}

func echo(fd int) {
	p := make([]byte, 1<<16)
	for {
		n, err := unix.Read(fd, p)
		if n <= 0 || err != nil {
			return
		}
		if _, err := unix.Write(fd, p[:n]); err != nil {
			return
		}
	}
}

// BenchmarkToGuest and BenchmarkToHost are throughput, with buffers as Linux has
// them.
func BenchmarkToGuest(b *testing.B) {
	p := newPolling(b, 4096+headerSize)
	go func() {
		data := make([]byte, 1<<16)
		for {
			if _, err := unix.Write(p.host, data); err != nil {
				return
			}
		}
	}()
	b.SetBytes(1 << 16)
	b.ReportAllocs()
	got := 0
	for b.Loop() {
		for got < 1<<16 {
			n := p.receive()
			if got += n; n > 0 {
				// Credit, and the buffers.
				p.credit()
			} else {
				runtime.Gosched()
			}
		}
		got -= 1 << 16
	}
	unix.Shutdown(p.host, unix.SHUT_RDWR)
}

// credit tells the device what the guest has taken.
func (p *polling) credit() {
	if p.tx.next != p.tx.seen {
		if _, _, ok := p.tx.take(); !ok {
			return
		}
	}
	h := header{
		srcCID: MinCID, dstCID: HostCID, srcPort: 1, dstPort: 2, kind: kindStream, op: opCreditUpdate,
		bufAlloc: 1 << 20, fwdCnt: p.forwarded,
	}
	h.encode((*[headerSize]byte)(p.packet))
	p.tx.publish(p.head)
	p.tx.kick()
	p.rx.kick()
}

func BenchmarkToHost(b *testing.B) {
	p := newPolling(b, 4096)
	go func() {
		data := make([]byte, 1<<18)
		for {
			if n, err := unix.Read(p.host, data); n <= 0 || err != nil {
				return
			}
		}
	}()
	b.SetBytes(maxData)
	b.ReportAllocs()
	for b.Loop() {
		p.send(maxData)
		p.tx.kick()
		for {
			p.receive()
			if _, _, ok := p.tx.take(); ok {
				break
			}
		}
	}
	unix.Shutdown(p.host, unix.SHUT_RDWR)
}
