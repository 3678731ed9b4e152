package net

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

var testMAC = MAC{0x02, 0, 0, 0, 0, 0x42}

// wire is a back end whose other end is in the test's hands: a socket for each
// queue pair.
type wire struct {
	t        testing.TB
	fds      []int // the device's
	peers    []int // the test's, blocking
	offloads uint32
	mtu      int

	mu          sync.Mutex
	setOffloads []uint32
	setPairs    []int
	fail        error // of the setters
	closed      bool
}

func newWire(t testing.TB, pairs int) *wire {
	w := &wire{t: t, offloads: unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN, mtu: 1500}
	for range pairs {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SetNonblock(fds[0], true); err != nil {
			t.Fatal(err)
		}
		tv := unix.NsecToTimeval(int64(virtiotest.Patience))
		for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
			if err := unix.SetsockoptTimeval(fds[1], unix.SOL_SOCKET, option, &tv); err != nil {
				t.Fatal(err)
			}
		}
		w.fds = append(w.fds, fds[0])
		w.peers = append(w.peers, fds[1])
		t.Cleanup(func() { unix.Close(fds[1]) })
	}
	return w
}

func (w *wire) Descriptors() []int { return w.fds }
func (w *wire) Offloads() uint32   { return w.offloads }
func (w *wire) MTU() int           { return w.mtu }

func (w *wire) SetOffloads(o uint32) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.setOffloads = append(w.setOffloads, o)
	return w.fail
}

func (w *wire) SetPairs(n int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.setPairs = append(w.setPairs, n)
	return w.fail
}

var errEnd = errors.New("the wire has ended")

func (w *wire) Err() error { return errEnd }

// told is what the back end was told so far.
func (w *wire) told() (offloads []uint32, pairs []int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.setOffloads), slices.Clone(w.setPairs)
}

func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return errors.New("closed twice")
	}
	w.closed = true
	var errs []error
	for _, fd := range w.fds {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}

// put sends a frame to the guest.
func (w *wire) put(frame []byte) { w.putHeader(make([]byte, headerSize), frame) }

func (w *wire) putHeader(header, frame []byte) {
	w.t.Helper()
	p := slices.Concat(header, frame)
	err := uninterrupted(func() error {
		_, err := unix.Write(w.peers[0], p)
		return err
	})
	if err != nil {
		w.t.Fatalf("send to the device: %v", err)
	}
}

// uninterrupted calls f until no signal interrupts it: the sockets have a
// timeout, with which the kernel does not do that itself.
func uninterrupted(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// get returns the next frame of the guest, and its header.
func (w *wire) get() (header, frame []byte) {
	w.t.Helper()
	p := make([]byte, maxFrame+1)
	n := 0
	err := uninterrupted(func() (err error) {
		n, err = unix.Read(w.peers[0], p)
		return err
	})
	if err != nil {
		w.t.Fatalf("receive from the device: %v", err)
	}
	if n < headerSize {
		w.t.Fatalf("%d bytes from the device", n)
	}
	return p[:headerSize], p[headerSize:n]
}

// guest is a device and its driver.
type guest struct {
	*virtiotest.Driver
	t      testing.TB
	device *Device
	wire   *wire
	// buffers are those that wait for frames, by head, and in which order
	// they were given for each queue.
	buffers map[uint16][]virtiotest.Buffer
	// dropping is set if there may be something in the buffers of frames that
	// were dropped.
	dropping bool
}

func newGuest(t testing.TB, c Config, o virtiotest.Options) *guest {
	t.Helper()
	if c.Backend == nil {
		c.Backend = newWire(t, 1)
	}
	if c.MAC == (MAC{}) {
		c.MAC = testMAC
	}
	if c.Warn == nil {
		c.Warn = func(err error) { t.Errorf("warning: %v", err) }
	}
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	w, _ := c.Backend.(*wire)
	g := &guest{t: t, device: d, wire: w, buffers: make(map[uint16][]virtiotest.Buffer)}
	g.Driver = virtiotest.Start(t, d, o)
	return g
}

func (g *guest) rx() *virtiotest.Queue      { return g.Queues[0] }
func (g *guest) tx() *virtiotest.Queue      { return g.Queues[1] }
func (g *guest) control() *virtiotest.Queue { return g.Queues[len(g.Queues)-1] }

// give gives receive buffers, each with pieces of the given sizes, and kicks.
func (g *guest) give(n int, sizes ...int) {
	g.t.Helper()
	for range n {
		var pieces []virtiotest.Buffer
		for _, size := range sizes {
			at := g.Memory.Alloc(uint64(size), 1)
			g.Memory.Set(at, bytes.Repeat([]byte{0xee}, size))
			pieces = append(pieces, virtiotest.Buffer{GPA: at, Len: uint32(size), Write: true})
		}
		var head uint16
		if len(pieces) > 8 {
			head = g.rx().IndirectChain(pieces...)
		} else {
			head = g.rx().Chain(pieces...)
		}
		g.buffers[head] = pieces
		g.rx().Publish(head)
	}
	g.rx().Kick()
}

// receive returns the next frame, its header and over how many buffers it came.
func (g *guest) receive() (header, frame []byte) {
	g.t.Helper()
	p := g.receiveBuffer()
	if len(p) < headerSize {
		g.t.Fatalf("%d bytes in the first buffer", len(p))
	}
	n := int(binary.LittleEndian.Uint16(p[headerBuffers:]))
	for range n - 1 {
		p = append(p, g.receiveBuffer()...)
	}
	return p[:headerSize], p[headerSize:]
}

func (g *guest) receiveBuffer() []byte {
	g.t.Helper()
	head, written := g.rx().Wait()
	return g.contents(head, written)
}

func (g *guest) contents(head uint16, written uint32) []byte {
	g.t.Helper()
	var p []byte
	for _, b := range g.buffers[head] {
		p = append(p, g.Memory.Get(b.GPA, int(b.Len))...)
	}
	delete(g.buffers, head)
	if int(written) > len(p) {
		g.t.Fatalf("%d bytes written to a buffer of %d", written, len(p))
	}
	for _, x := range p[written:] {
		if x != 0xee && !g.dropping {
			g.t.Fatal("written behind the end of the frame")
		}
	}
	return p[:written]
}

// send hands a frame to the device, with a header of zeros, and waits until it
// has taken it.
func (g *guest) send(frame []byte) { g.sendHeader(make([]byte, headerSize), frame) }

func (g *guest) sendHeader(header, frame []byte) {
	g.t.Helper()
	_, written := g.tx().Do([][]byte{header, frame})
	if written != 0 {
		g.t.Errorf("a send buffer came back with %d bytes written", written)
	}
}

// command runs a command on the control queue and returns the answer.
func (g *guest) command(class, cmd byte, data ...byte) byte {
	g.t.Helper()
	answer, _ := g.control().Do([][]byte{append([]byte{class, cmd}, data...)}, 1)
	return answer[0][0]
}

// testFrame makes an Ethernet frame of n bytes, which tells its number.
func testFrame(n, number int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*31 + number)
	}
	copy(p, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	copy(p[6:], testMAC[:])
	binary.BigEndian.PutUint16(p[12:], 0x88b5) // for local experiments
	if n >= ethernetHeader+4 {
		binary.BigEndian.PutUint32(p[ethernetHeader:], uint32(number))
	}
	return p
}

func sameFrame(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		at := 0
		for at < len(got) && at < len(want) && got[at] == want[at] {
			at++
		}
		t.Fatalf("%s: frame of %d bytes, want %d; they differ at %d", what, len(got), len(want), at)
	}
}

// await waits until ok.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(virtiotest.Patience); !ok(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

var (
	_ virtio.Device = (*Device)(nil)
)
