package vsock

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

// What the bytes of a fuzz input stand for: operations with their arguments.
const (
	fuzzMemory  = iota // offset 2, length 1, bytes: write the guest's memory
	fuzzPacket         // a packet of the guest, see fuzzer.packet
	fuzzBuffer         // length 2: a buffer for the rx queue
	fuzzEvent          // length 1: a buffer for the event queue
	fuzzServe          // look at all queues and sockets
	fuzzConnect        // length 1, bytes: a program of the host connects and writes
	fuzzWrite          // which 1, length 2: a program of the host writes
	fuzzRead           // which 1: a program of the host reads what there is
	fuzzClose          // which 1, how 1: a program of the host closes its socket
	fuzzAccept         // port 1: a program of the host accepts
	fuzzTick           // the timer
	fuzzMove           // save, and restore elsewhere
	fuzzReset          // the driver resets the device
	fuzzOps
)

const (
	fuzzMem    = 1 << 20
	fuzzQueues = 16 // size of the queues
)

// fuzzer is a device, its guest's memory and the programs of the host.
type fuzzer struct {
	t         *testing.T // of the input
	dir       string
	mem       *memory.Guest
	d         *Device
	queues    []*virtio.Queue
	listeners map[uint32]int
	programs  []int
	devices   int
}

// newFuzzer makes what all inputs share.
func newFuzzer(t *testing.F) *fuzzer {
	mem, err := memory.New(memory.Options{Size: fuzzMem})
	if err != nil {
		t.Fatal(err)
	}
	f := &fuzzer{dir: t.TempDir(), mem: mem}
	for range 3 {
		q, err := virtio.NewQueue(mem, func() {})
		if err != nil {
			t.Fatal(err)
		}
		f.queues = append(f.queues, q)
	}
	return f
}

// open begins with an input.
func (f *fuzzer) open(t *testing.T) {
	f.t = t
	all, err := f.mem.Slice(0, fuzzMem)
	if err != nil {
		t.Fatal(err)
	}
	clear(all)
	f.newDevice()
	f.enable()
}

// place is where queue i lies: the pages from 1 on.
func place(i int) memory.GPA { return memory.GPA(1+i) * memory.PageSize }

func (f *fuzzer) enable() {
	for i, q := range f.queues {
		f.mem.Write(place(i), make([]byte, memory.PageSize))
		c := virtio.QueueConfig{Size: fuzzQueues, Desc: place(i), Avail: place(i) + 0x400, Used: place(i) + 0x800}
		if err := q.Enable(c, virtio.TransportFeatures); err != nil {
			f.t.Fatal(err)
		}
	}
	f.attach()
}

func (f *fuzzer) attach() {
	drv := virtio.Driver{Mem: f.mem, Features: virtio.TransportFeatures, Queues: f.queues, Fail: func(error) {}}
	if err := f.d.attach(drv); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fuzzer) newDevice() {
	f.devices++
	d, err := New(Config{Path: filepath.Join(f.dir, string(rune('a'+f.devices%26)))})
	if err != nil {
		f.t.Fatal(err)
	}
	f.d = d
	for _, fd := range f.listeners {
		unix.Close(fd)
	}
	f.listeners = make(map[uint32]int)
	for port := range uint32(2) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			f.t.Fatal(err)
		}
		path := d.cfg.Path + "_" + string(rune('0'+port))
		unix.Unlink(path)
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			f.t.Fatal(err)
		}
		if err := unix.Listen(fd, 1); err != nil {
			f.t.Fatal(err)
		}
		f.listeners[port] = fd
	}
}

func (f *fuzzer) close() {
	f.d.Close()
	for _, fd := range f.listeners {
		unix.Close(fd)
	}
	for _, fd := range f.programs {
		unix.Close(fd)
	}
	f.listeners, f.programs = nil, nil
}

// add puts a chain of one buffer, at a place of its own for each queue and slot,
// into a queue.
func (f *fuzzer) add(queue int, size uint32, write bool) memory.GPA {
	avail, _ := f.mem.Uint16(place(queue) + 0x402)
	slot := memory.GPA(avail % fuzzQueues)
	at := memory.GPA(0x10000) + memory.GPA(queue)<<18 + slot<<13
	var flags uint64
	if write {
		flags = 2
	}
	f.mem.PutUint64(place(queue)+slot*16, uint64(at))
	f.mem.PutUint64(place(queue)+slot*16+8, uint64(size)|flags<<32)
	f.mem.PutUint16(place(queue)+0x404+slot*2, uint16(slot))
	f.mem.PutUint16(place(queue)+0x402, avail+1)
	return at
}

// packet adds a packet: operation, flags, port of the host, port of the guest,
// length, credit.
func (f *fuzzer) packet(in *virtiotest.Tape) {
	h := header{
		srcCID: f.d.cid, dstCID: HostCID, kind: kindStream, op: operation(in.Number(1)), flags: shutdown(in.Number(1)),
		dstPort: in.Number(1), srcPort: in.Number(1), length: in.Number(2), bufAlloc: in.Number(2), fwdCnt: in.Number(2),
	}
	if h.dstPort >= 128 { // one that the host has opened
		h.dstPort += firstPort - 128
	}
	var b [headerSize]byte
	h.encode(&b)
	f.mem.Write(f.add(txQueue, headerSize+min(h.length, 8000), false), b[:])
}

// serve does what the loop would after any event.
func (f *fuzzer) serve() {
	if f.d.failed {
		return
	}
	f.d.listener.waiting = true
	for _, c := range f.conns() {
		f.d.flush(c)
		f.d.socketChanged(c)
	}
	f.d.serveEvents()
}

func (f *fuzzer) conns() (all []*conn) {
	for _, c := range f.d.conns {
		all = append(all, c)
	}
	for c := range f.d.portless {
		all = append(all, c)
	}
	return all
}

// check looks for contradictions.
func (f *fuzzer) check() {
	d := f.d
	listed, large, greeters := make(map[*conn]bool), 0, 0
	for c := d.ready.first; c != nil; c = c.next {
		if listed[c] || !c.listed {
			f.t.Fatal("the list of ready connections is broken")
		}
		listed[c] = true
	}
	for _, c := range f.conns() {
		if c.alloc == largeWindow {
			large++
		}
		if c.stage == greeting {
			greeters++
		}
		if c.listed != listed[c] {
			f.t.Fatal("a connection is not in the list that it says to be in")
		}
		if c.busy() && !c.listed {
			f.t.Fatalf("connection %+v has something for the guest and is not in the list", c.ports)
		}
		if c.pending.n > int(c.alloc) || len(c.pending.data) > int(c.alloc) {
			f.t.Fatalf("%d bytes wait in a window of %d", c.pending.n, c.alloc)
		}
		delete(listed, c)
	}
	if len(listed) > 0 || large != d.large || greeters != d.greeters || d.total() > MaxConnections {
		f.t.Fatalf("%d connections too many in the list, %d large of %d, %d greeters of %d", len(listed), d.large, large, d.greeters, greeters)
	}
}

// connect has a program of the host connect and say something.
func (f *fuzzer) connect(says []byte) {
	if len(f.programs) > 50 {
		return
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	f.programs = append(f.programs, fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: f.d.cfg.Path}); err != nil {
		f.t.Fatal(err)
	}
	unix.Write(fd, says)
}

func (f *fuzzer) program(in *virtiotest.Tape) int {
	n := int(in.Number(1))
	if len(f.programs) == 0 {
		return -1
	}
	return n % len(f.programs)
}

// step does one operation.
func (f *fuzzer) step(in *virtiotest.Tape) {
	switch in.Number(1) % fuzzOps {
	case fuzzMemory:
		at := memory.GPA(in.Number(2))
		f.mem.Write(at, in.Take(int(in.Number(1))))
	case fuzzPacket:
		f.packet(in)
	case fuzzBuffer:
		f.add(rxQueue, in.Number(2)&0x1fff, true)
	case fuzzEvent:
		f.add(eventQueue, in.Number(1), true)
	case fuzzServe:
		f.serve()
	case fuzzConnect:
		f.connect(in.Take(int(in.Number(1) & 0x3f)))
	case fuzzWrite:
		if i := f.program(in); i >= 0 {
			unix.Write(f.programs[i], make([]byte, in.Number(2)))
		}
	case fuzzRead:
		if i := f.program(in); i >= 0 {
			p := make([]byte, 1<<16)
			for {
				if n, err := unix.Read(f.programs[i], p); n <= 0 || err != nil {
					break
				}
			}
		}
	case fuzzClose:
		if i := f.program(in); i >= 0 {
			switch in.Number(1) % 3 {
			case 0:
				unix.Close(f.programs[i])
				f.programs = append(f.programs[:i], f.programs[i+1:]...)
			case 1:
				unix.Shutdown(f.programs[i], unix.SHUT_WR)
			case 2:
				unix.Shutdown(f.programs[i], unix.SHUT_RD)
			}
		}
	case fuzzAccept:
		if fd, _, err := unix.Accept4(f.listeners[in.Number(1)&1], unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC); err == nil {
			f.programs = append(f.programs, fd)
		}
	case fuzzTick:
		f.d.retry()
	case fuzzMove:
		s := f.d.Save()
		f.d.Close()
		f.newDevice()
		if err := f.d.Restore(s); err != nil {
			f.t.Fatal(err)
		}
		f.attach()
	case fuzzReset:
		f.d.Reset()
		f.enable()
	}
}

// FuzzDevice does what a guest and programs of the host may do, in any order.
func FuzzDevice(f *testing.F) {
	packet := func(op operation, flags shutdown, host, guest byte, n uint16) []byte {
		return []byte{fuzzPacket, byte(op), byte(flags), host, guest, byte(n), byte(n >> 8), 0xff, 0xff, 0, 0}
	}
	buffer := []byte{fuzzBuffer, 0, 0x10}
	join := func(parts ...[]byte) (all []byte) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	serve, accept := []byte{fuzzServe}, []byte{fuzzAccept, 0}
	greet := append([]byte{fuzzConnect, 10}, "CONNECT 5\n"...)
	// The guest connects, data both ways, and the end.
	f.Add(join(buffer, buffer, buffer, packet(opRequest, 0, 0, 1, 0), serve, accept, packet(opData, 0, 0, 1, 5000), serve,
		[]byte{fuzzWrite, 0, 0, 0x20}, serve, []byte{fuzzRead, 0}, packet(opShutdown, noMore, 0, 1, 0), serve))
	// The host connects and goes away.
	f.Add(join(buffer, greet, serve, packet(opResponse, 0, 128, 5, 0), buffer, serve, []byte{fuzzWrite, 0, 9, 0}, serve,
		[]byte{fuzzClose, 0, 0}, buffer, serve, buffer, serve, packet(opReset, 0, 128, 5, 0), serve))
	// More than the host reads, then the guest goes.
	many := packet(opData, 0, 0, 1, 8000)
	f.Add(join(buffer, packet(opRequest, 0, 0, 1, 0), serve, many, many, many, many, many, many, many, many, serve,
		many, many, many, many, many, many, many, many, serve, many, many, many, many, many, many, many, many, serve,
		many, many, many, many, many, many, many, many, serve, packet(opShutdown, noSend, 0, 1, 0), packet(opReset, 0, 0, 1, 0), serve, accept, []byte{fuzzRead, 0}, serve))
	// More than the host accepts.
	f.Add(join(buffer, packet(opRequest, 0, 1, 1, 0), packet(opRequest, 0, 1, 2, 0), packet(opRequest, 0, 1, 3, 0), serve,
		[]byte{fuzzTick}, []byte{fuzzAccept, 1}, []byte{fuzzTick}, buffer, buffer, serve))
	// A restore.
	f.Add(join(packet(opRequest, 0, 0, 1, 0), serve, []byte{fuzzMove, fuzzEvent, 4}, serve, buffer, []byte{fuzzEvent, 4}, serve))
	f.Add([]byte{fuzzMemory, 0x02, 0x24, 2, 9, 9, fuzzServe, fuzzReset, fuzzServe})
	z := newFuzzer(f)
	f.Fuzz(func(t *testing.T, input []byte) {
		// What follows is left out: a long input would only be slow.
		input = input[:min(len(input), 4096)]
		z.open(t)
		defer z.close()
		for in := virtiotest.Tape(input); len(in) > 0; {
			z.step(&in)
			z.check()
		}
		z.serve()
		z.check()
	})
}
