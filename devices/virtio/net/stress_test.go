package net

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

// TestStopUnderTraffic pauses the device again and again while frames go both
// ways: what was sent arrives once, whole and in order. Only a frame that was
// half received at a pause may be missing.
func TestStopUnderTraffic(t *testing.T) {
	for _, without := range []uint64{0, virtio.FeatureEventIdx} {
		t.Run(fmt.Sprintf("without %#x", without), func(t *testing.T) {
			g := newGuest(t, Config{}, virtiotest.Options{Without: without})
			const frames = 3000
			size := func(i int) int { return 60 + i*37%3000 }
			var wg sync.WaitGroup
			wg.Go(func() {
				for i := range frames {
					g.wire.put(testFrame(size(i), i))
				}
			})
			wg.Go(func() {
				for i := range frames {
					_, got := g.wire.get()
					sameFrame(t, fmt.Sprintf("sent %d", i), got, testFrame(size(i), i))
				}
			})
			stop := make(chan struct{})
			var pauses sync.WaitGroup
			pauses.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Duration(rand.IntN(500)) * time.Microsecond):
						g.Stop()
						g.Resume()
					}
				}
			})
			defer pauses.Wait()
			defer close(stop)
			received := driveBoth(t, g, frames, size)
			wg.Wait()
			dropped := g.device.Stats().Receive.Dropped
			t.Logf("%d of %d frames received, %d lost at pauses", received, frames, dropped)
			if received+int(dropped) != frames {
				t.Errorf("%d frames received and %d dropped, want %d together", received, dropped, frames)
			}
		})
	}
}

// driveBoth is a driver that sends frames and receives as many, less what the
// device has dropped. It polls, as a driver in an interrupt handler does, and
// sleeps for an interrupt.
func driveBoth(t *testing.T, g *guest, frames int, size func(int) int) (received int) {
	rx, tx := g.rx(), g.tx()
	g.dropping = true
	g.give(64, 1000)
	const slots = 64
	var idle []memory.GPA // where frames to be sent go
	for range slots {
		idle = append(idle, g.Memory.Alloc(4096, 16))
	}
	busy := make(map[uint16]memory.GPA)
	sent, last := 0, -1
	end := time.Now().Add(virtiotest.Patience)
	for received+int(g.device.Stats().Receive.Dropped) < frames || sent < frames || len(busy) > 0 {
		if time.Now().After(end) {
			t.Fatalf("stuck: sent %d, received %d, %d send buffers in use, %+v", sent, received, len(busy), g.device.Stats())
		}
		for sent < frames && len(idle) > 0 {
			at := idle[len(idle)-1]
			idle = idle[:len(idle)-1]
			p := append(make([]byte, headerSize), testFrame(size(sent), sent)...)
			g.Memory.Set(at, p)
			head := tx.Chain(virtiotest.Buffer{GPA: at, Len: uint32(len(p))})
			busy[head] = at
			tx.Publish(head)
			tx.Kick()
			sent++
		}
		for head, _, ok := tx.Take(); ok; head, _, ok = tx.Take() {
			idle = append(idle, busy[head])
			delete(busy, head)
		}
		for {
			head, written, ok := rx.Take()
			if !ok {
				break
			}
			p := g.contents(head, written)
			for range int(binary.LittleEndian.Uint16(p[headerBuffers:])) - 1 {
				for head, written, ok = rx.Take(); !ok; head, written, ok = rx.Take() {
				}
				p = append(p, g.contents(head, written)...)
			}
			number := int(binary.BigEndian.Uint32(p[headerSize+ethernetHeader:]))
			if number <= last {
				t.Fatalf("frame %d received after %d", number, last)
			}
			last = number
			sameFrame(t, fmt.Sprintf("received %d", number), p[headerSize:], testFrame(size(number), number))
			received++
			if rx.Free() > 32 {
				g.give(32, 1000)
			}
		}
	}
	return received
}

// TestPairs sends and receives on all pairs.
func TestPairs(t *testing.T) {
	const pairs = 3
	w := newWire(t, pairs)
	g := newGuest(t, Config{Backend: w}, virtiotest.Options{})
	if got := g.command(classMQ, mqPairsSet, pairs, 0); got != ackOK {
		t.Fatalf("answer %d", got)
	}
	for i := range pairs {
		rx, tx := g.Queues[2*i], g.Queues[2*i+1]
		g.wire = &wire{t: t, peers: w.peers[i : i+1]}
		g.Queues[0], g.Queues[1] = rx, tx
		g.give(2, 2048)
		g.wire.put(testFrame(100+i, i))
		_, got := g.receive()
		sameFrame(t, fmt.Sprintf("received by pair %d", i), got, testFrame(100+i, i))
		g.send(testFrame(200+i, i))
		_, got = g.wire.get()
		sameFrame(t, fmt.Sprintf("sent by pair %d", i), got, testFrame(200+i, i))
	}
	if s := g.device.Stats(); s.Receive.Frames != pairs || s.Send.Frames != pairs {
		t.Errorf("counts %+v", s)
	}
}

// TestAllocations tests that frames cost no memory, however they go.
func TestAllocations(t *testing.T) {
	for _, size := range []int{60, 1514, 60000} {
		l := newLooper(newGuest(t, Config{}, virtiotest.Options{}), size)
		const frames = 1000
		for name, f := range map[string]func(int){"send": l.sendMany, "receive": l.receiveMany} {
			f(frames) // to grow what is used again
			if n := allocations(func() { f(frames) }); n > frames/20 {
				t.Errorf("%s: %d allocations for %d frames of %d bytes", name, n, frames, size)
			}
		}
	}
}

// allocations counts those of all goroutines. testing.AllocsPerRun leaves them
// one processor, on which nothing here works.
func allocations(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.Mallocs - before.Mallocs
}
