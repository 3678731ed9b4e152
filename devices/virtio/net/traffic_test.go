package net

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

func TestSend(t *testing.T) {
	for _, test := range []struct {
		name   string
		pieces []int // of the chain, header included; the last takes the rest
		size   int
	}{
		{"header apart", []int{12}, 60},
		{"in one piece", nil, 60},
		{"header in pieces", []int{1, 5, 3}, 1514},
		{"many pieces", []int{12, 14, 20, 20, 100, 1, 1, 1, 1, 1, 1, 7}, 1514},
		{"smallest", []int{12}, ethernetHeader},
		{"largest", []int{12}, maxFrame - headerSize},
	} {
		for _, without := range []uint64{0, virtio.FeatureEventIdx, virtio.FeatureIndirect} {
			t.Run(fmt.Sprintf("%s without %#x", test.name, without), func(t *testing.T) {
				g := newGuest(t, Config{}, virtiotest.Options{Without: without})
				header := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0}
				frame := testFrame(test.size, 7)
				rest := append(bytes.Clone(header), frame...)
				var out [][]byte
				for _, n := range test.pieces {
					out = append(out, rest[:n])
					rest = rest[n:]
				}
				g.tx().Do(append(out, rest))
				h, got := g.wire.get()
				sameFrame(t, "sent", got, frame)
				if !bytes.Equal(h[:10], header[:10]) {
					t.Errorf("header % x, want % x", h, header)
				}
				if s := g.device.Stats().Send; s != (Counts{1, uint64(test.size), 0}) {
					t.Errorf("counts %+v", s)
				}
			})
		}
	}
}

func TestReceive(t *testing.T) {
	const pieces = 40
	var manyPieces []int
	for range pieces {
		manyPieces = append(manyPieces, 50)
	}
	for _, test := range []struct {
		name    string
		buffers int
		sizes   []int // of the pieces of each buffer
		size    int
		want    int // buffers taken
	}{
		{"one buffer", 2, []int{2048}, 60, 1},
		{"exactly one buffer", 2, []int{1526}, 1514, 1},
		{"one byte more", 2, []int{1526}, 1515, 2},
		{"header apart", 2, []int{12, 1514}, 1514, 1},
		{"header in pieces", 2, []int{1, 2, 3, 2, 3, 2000}, 1514, 1},
		{"two buffers", 4, []int{1000}, 1514, 2},
		{"large frame", 64, []int{1526}, maxFrame - headerSize, 43},
		{"large buffer", 1, []int{1 << 17}, maxFrame - headerSize, 1},
		{"small buffers", 128, []int{16}, 1514, 96},
		{"buffers of the header's size", 20, []int{12}, 60, 6},
		{"many pieces", 3, manyPieces, 1514, 1},
		{"as many as can be held", maxPending, []int{100}, 100*maxPending - headerSize, maxPending},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newGuest(t, Config{}, virtiotest.Options{})
			g.give(test.buffers, test.sizes...)
			frame := testFrame(test.size, 3)
			g.wire.putHeader([]byte{1, 1, 3, 4, 5, 6, 7, 8, 9, 10, 0x55, 0x55}, frame)
			h, got := g.receive()
			sameFrame(t, "received", got, frame)
			if want := []byte{1, 1, 3, 4, 5, 6, 7, 8, 9, 10, byte(test.want), 0}; !bytes.Equal(h, want) {
				t.Errorf("header % x, want % x", h, want)
			}
			if s := g.device.Stats().Receive; s != (Counts{1, uint64(test.size), 0}) {
				t.Errorf("counts %+v", s)
			}
		})
	}
}

// TestReceiveWithoutMergeable tests that a frame takes one buffer or none.
func TestReceiveWithoutMergeable(t *testing.T) {
	g := newGuest(t, Config{}, virtiotest.Options{Without: FeatureMergeable})
	g.dropping = true
	g.give(4, 12, 1514)
	g.wire.put(testFrame(1514, 1))
	h, got := g.receive()
	sameFrame(t, "first", got, testFrame(1514, 1))
	if n := binary.LittleEndian.Uint16(h[headerBuffers:]); n != 1 {
		t.Errorf("num_buffers %d, want 1", n)
	}
	g.wire.put(testFrame(1515, 2)) // does not fit
	g.wire.put(testFrame(60, 3))
	_, got = g.receive()
	sameFrame(t, "third", got, testFrame(60, 3))
	if s := g.device.Stats().Receive; s.Frames != 2 || s.Dropped != 1 {
		t.Errorf("counts %+v", s)
	}
}

// TestReceiveDrops tests that frames which the guest has no use for are dropped
// and the next one comes.
func TestReceiveDrops(t *testing.T) {
	gso := make([]byte, headerSize)
	gso[headerGSOType] = 1
	partial := make([]byte, headerSize)
	partial[headerFlags] = flagNeedsCsum
	for _, test := range []struct {
		name    string
		without uint64
		header  []byte
		size    int
		give    []int // sizes of the pieces of a buffer
		queue   uint16
	}{
		{"large frame for a driver without", guestOffloads, gso, 3000, []int{2048}, 0},
		{"checksum missing for a driver without", guestOffloads, partial, 100, []int{2048}, 0},
		{"header without a frame", 0, make([]byte, headerSize), 0, []int{2048}, 0},
		{"part of a header", 0, make([]byte, 5), 0, []int{2048}, 0},
		{"larger than all", 0, make([]byte, headerSize), 1 << 17, []int{256}, 0},
		{"over too many buffers", 0, make([]byte, headerSize), 12 * maxPending, []int{12}, 0},
		{"over more buffers than the queue has", 0, make([]byte, headerSize), 3000, []int{100}, 16},
		{"over buffers in too many pieces", 0, make([]byte, headerSize), 20000, slices.Repeat([]int{16}, 300), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newGuest(t, Config{}, virtiotest.Options{Without: test.without, QueueSize: test.queue})
			g.dropping = true
			g.give(g.rx().Free(), test.give...)
			g.wire.putHeader(test.header, testFrame(test.size+ethernetHeader, 1)[:test.size])
			g.wire.put(testFrame(60, 2))
			_, got := g.receive()
			sameFrame(t, "next", got, testFrame(60, 2))
			if s := g.device.Stats().Receive; s.Frames != 1 || s.Dropped != 1 {
				t.Errorf("counts %+v", s)
			}
		})
	}
}

// TestValidChecksum tests that the flag about a good checksum is taken away from
// a driver that has not accepted it (§5.1.6.4.1).
func TestValidChecksum(t *testing.T) {
	for without, want := range map[uint64]byte{0: 2, guestOffloads: 0} {
		for _, sizes := range [][]int{{2048}, {5, 2048}} {
			g := newGuest(t, Config{}, virtiotest.Options{Without: without})
			g.give(1, sizes...)
			g.wire.putHeader([]byte{2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, testFrame(60, 1))
			if h, _ := g.receive(); h[headerFlags] != want {
				t.Errorf("flags %d without %#x, want %d", h[headerFlags], without, want)
			}
		}
	}
}

// TestStarvation tests that frames wait for buffers, in the back end and half
// read, and that nothing spins meanwhile.
func TestStarvation(t *testing.T) {
	for _, without := range []uint64{0, virtio.FeatureEventIdx} {
		g := newGuest(t, Config{}, virtiotest.Options{Without: without})
		for i := range 3 {
			g.wire.put(testFrame(5000, i))
		}
		before := cpuTime(t)
		const pause = 50 * time.Millisecond
		time.Sleep(pause) // in which nothing may happen
		if used := cpuTime(t) - before; used > pause/2 {
			t.Errorf("%v of processor time in %v without buffers", used, pause)
		}
		// Buffer by buffer: each frame takes four.
		for i := range 3 {
			for range 3 {
				g.give(1, 1500)
			}
			if _, _, ok := g.rx().Take(); ok {
				t.Fatal("a part of a frame was handed over")
			}
			g.give(1, 1500)
			_, got := g.receive()
			sameFrame(t, fmt.Sprintf("frame %d", i), got, testFrame(5000, i))
		}
	}
}

func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestBackPressure tests that frames of the guest wait until the back end takes
// them.
func TestBackPressure(t *testing.T) {
	for _, without := range []uint64{0, virtio.FeatureEventIdx} {
		g := newGuest(t, Config{}, virtiotest.Options{Without: without})
		const frames = 100
		q := g.tx()
		for i := range frames {
			at := g.Memory.Put(append(make([]byte, headerSize), testFrame(60000, i)...))
			q.Publish(q.Chain(virtiotest.Buffer{GPA: at, Len: headerSize + 60000}))
			q.Kick()
		}
		await(t, "the back end is full", func() bool {
			room := []unix.PollFd{{Fd: int32(g.wire.fds[0]), Events: unix.POLLOUT}}
			n, err := unix.Poll(room, 0)
			return err == nil && n == 0
		})
		if n := g.device.Stats().Send.Frames; n == 0 || n == frames {
			t.Fatalf("%d frames went into a full back end", n)
		}
		for i := range frames {
			_, got := g.wire.get()
			sameFrame(t, fmt.Sprintf("frame %d", i), got, testFrame(60000, i))
			q.Wait()
		}
	}
}

// TestSendDrops tests that what is no frame is dropped, and the next one goes
// out.
func TestSendDrops(t *testing.T) {
	g := newGuest(t, Config{}, virtiotest.Options{})
	for i, out := range [][]byte{
		make([]byte, 1), make([]byte, headerSize), make([]byte, headerSize+ethernetHeader-1), make([]byte, maxFrame+1),
	} {
		g.tx().Do([][]byte{out})
		g.tx().Do(nil, 100) // a buffer that is to be written
		g.send(testFrame(60, i))
		_, got := g.wire.get()
		sameFrame(t, "next", got, testFrame(60, i))
	}
	if s := g.device.Stats().Send; s.Frames != 4 || s.Dropped != 8 {
		t.Errorf("counts %+v", s)
	}
}

// TestBrokenQueues tests that a driver that breaks the rules gets the device
// stopped, and that it is usable after a reset.
func TestBrokenQueues(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(g *guest)
	}{
		{"avail index jumps on receive", func(g *guest) {
			g.rx().SetAvailIndex(1000)
			g.rx().Kick()
		}},
		{"avail index jumps on send", func(g *guest) {
			g.tx().SetAvailIndex(1000)
			g.tx().Kick()
		}},
		{"avail index jumps on control", func(g *guest) {
			g.control().SetAvailIndex(1000)
			g.control().Kick()
		}},
		{"receive buffer outside memory", func(g *guest) {
			g.rx().Publish(g.rx().Chain(virtiotest.Buffer{GPA: 1 << 40, Len: 100, Write: true}))
			g.rx().Kick()
		}},
		{"receive buffer to be read", func(g *guest) {
			g.rx().Publish(g.rx().Chain(virtiotest.Buffer{GPA: 4096, Len: 2048}))
			g.rx().Kick()
		}},
		{"receive buffer smaller than the header", func(g *guest) { g.give(1, headerSize-1) }},
		{"receive buffer in too many pieces", func(g *guest) {
			pieces := make([]int, maxVectors)
			for i := range pieces {
				pieces[i] = 16
			}
			g.give(1, pieces...)
		}},
		{"descriptor loop on send", func(g *guest) {
			head := g.tx().Chain(virtiotest.Buffer{GPA: 4096, Len: 100})
			g.tx().SetDescriptor(g.tx().Desc, head, 4096, 100, virtiotest.Next, head)
			g.tx().Publish(head)
			g.tx().Kick()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newGuest(t, Config{}, virtiotest.Options{})
			test.do(g)
			g.wire.put(testFrame(60, 1))
			if err := g.AwaitFail(); !errors.Is(err, virtio.ErrBroken) {
				t.Errorf("failed with %v, want %v", err, virtio.ErrBroken)
			}
			g.Reset()
			g.buffers = make(map[uint16][]virtiotest.Buffer)
			g.give(4, 2048)
			g.wire.put(testFrame(60, 2))
			_, got := g.receive()
			if !bytes.Equal(got, testFrame(60, 1)) {
				sameFrame(t, "received", got, testFrame(60, 2))
			}
			g.send(testFrame(61, 3))
			_, got = g.wire.get()
			sameFrame(t, "sent", got, testFrame(61, 3))
		})
	}
}

// TestLimits tests that no more than the burst goes through at once, that the
// rest follows, and that the directions do not share.
func TestLimits(t *testing.T) {
	const frames = 30
	limits := limit.Config{Operations: limit.Rate{PerSecond: 200, Burst: 10}}
	bytes := limit.Config{Bandwidth: limit.Rate{PerSecond: 200 * 1000, Burst: 10 * 1000}}
	for _, test := range []struct {
		name string
		c    Config
	}{
		{"frames sent", Config{Send: limits}}, {"bytes sent", Config{Send: bytes}},
		{"frames received", Config{Receive: limits}}, {"bytes received", Config{Receive: bytes}},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newGuest(t, test.c, virtiotest.Options{})
			sendLimited := test.c.Send != limit.Config{}
			count := func() uint64 {
				if sendLimited {
					return g.device.Stats().Send.Frames
				}
				return g.device.Stats().Receive.Frames
			}
			g.give(frames, 2048)
			start := time.Now()
			q := g.tx()
			for i := range frames {
				if sendLimited {
					at := g.Memory.Put(append(make([]byte, headerSize), testFrame(1000, i)...))
					q.Publish(q.Chain(virtiotest.Buffer{GPA: at, Len: headerSize + 1000}))
				} else {
					g.wire.put(testFrame(1000, i))
				}
			}
			q.Kick()
			for i := range frames {
				var got []byte
				if sendLimited {
					_, got = g.wire.get()
				} else {
					_, got = g.receive()
				}
				sameFrame(t, fmt.Sprintf("frame %d", i), got, testFrame(1000, i))
			}
			// 10 at once, one more before the debt shows, 19 at 200 a second.
			if took, least := time.Since(start), 18*5*time.Millisecond; took < least {
				t.Errorf("%d frames took %v, want %v at least", frames, took, least)
			}
			await(t, "all frames are counted", func() bool { return count() == frames })
			// The other direction is free.
			start = time.Now()
			for i := range frames {
				if sendLimited {
					g.wire.put(testFrame(1000, i))
					g.receive()
				} else {
					g.send(testFrame(1000, i))
					g.wire.get()
				}
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("the other direction took %v", took)
			}
		})
	}
}

// TestChangeLimits tests that other limits hold for frames, too, that wait for the old
// ones, which would be for minutes.
func TestChangeLimits(t *testing.T) {
	const frames = 5
	slow := limit.Config{Operations: limit.Rate{PerSecond: 1, Burst: 1}, Bandwidth: limit.Rate{PerSecond: 1, Burst: 1}}
	g := newGuest(t, Config{Send: slow, Receive: slow}, virtiotest.Options{})
	g.give(frames, 2048)
	q := g.tx()
	for i := range frames {
		at := g.Memory.Put(append(make([]byte, headerSize), testFrame(1000, i)...))
		q.Publish(q.Chain(virtiotest.Buffer{GPA: at, Len: headerSize + 1000}))
		g.wire.put(testFrame(1000, i))
	}
	q.Kick()
	await(t, "the first frames are through", func() bool {
		s := g.device.Stats()
		return s.Send.Frames > 0 && s.Receive.Frames > 0
	})
	none := limit.Change{Bandwidth: &limit.Rate{}, Operations: &limit.Rate{}}
	if err := g.device.ChangeLimits(none, limit.Change{Bandwidth: &limit.Rate{Burst: 1}}); err == nil {
		t.Error("a burst without a rate went through")
	}
	if err := g.device.ChangeLimits(none, none); err != nil {
		t.Fatal(err)
	}
	for i := range frames {
		_, got := g.wire.get()
		sameFrame(t, fmt.Sprintf("frame %d sent", i), got, testFrame(1000, i))
		_, got = g.receive()
		sameFrame(t, fmt.Sprintf("frame %d received", i), got, testFrame(1000, i))
	}
}
