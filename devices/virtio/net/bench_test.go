package net

import (
	"encoding/binary"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio/net/tap"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

// BenchmarkTapSend sends frames out of a tap interface on which nobody listens.
func BenchmarkTapSend(b *testing.B) { benchmarkTapSend(b, (*ringDriver).stream) }

// BenchmarkTapSendSleepy is the same with a driver that sleeps while the device
// works: the processor time is that of the device.
func BenchmarkTapSendSleepy(b *testing.B) { benchmarkTapSend(b, (*ringDriver).sleepy) }

func benchmarkTapSend(b *testing.B, drive func(*ringDriver, int)) {
	for _, size := range []int{64, 1514, 60000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			newNamespace(b)
			t := openTap(b, tap.Config{})
			g := newGuest(b, Config{Backend: t}, virtiotest.Options{})
			r := newRingDriver(g, g.tx())
			r.sendBuffers(g, benchFrame(size))
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			before := cpuTime(b)
			drive(&r, b.N)
			b.StopTimer()
			b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/frame")
			b.ReportMetric(float64(r.kicks)/float64(b.N), "kicks/frame")
			if s := g.device.Stats().Send; int(s.Frames) != b.N {
				b.Errorf("counts %+v, want %d", s, b.N)
			}
		})
	}
}

// benchFrame is a frame with its header: larger than the MTU, it is a TCP
// segment that the host does not have to cut.
func benchFrame(size int) []byte {
	p := append(make([]byte, headerSize), testFrame(size, 1)...)
	if size <= 1514 {
		return p
	}
	header, frame := p[:headerSize], p[headerSize:]
	header[headerFlags], header[headerGSOType] = flagNeedsCsum, 1
	binary.LittleEndian.PutUint16(header[4:], 1448) // gso_size
	binary.LittleEndian.PutUint16(header[6:], 34)   // csum_start
	binary.LittleEndian.PutUint16(header[8:], 16)   // csum_offset
	copy(frame[12:], []byte{8, 0, 0x45, 0})
	binary.BigEndian.PutUint16(frame[16:], uint16(size-ethernetHeader))
	frame[22], frame[23] = 64, unix.IPPROTO_TCP
	frame[46] = 0x50 // the size of a TCP header
	return p
}

// BenchmarkTapReceive receives frames that a packet socket sends into a tap
// interface. What the sender costs is a part of it, on the other processor.
func BenchmarkTapReceive(b *testing.B) {
	for _, size := range []int{64, 1514} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			newNamespace(b)
			t := openTap(b, tap.Config{})
			run(b, "ip", "link", "set", t.Name(), "txqueuelen", "10000")
			w := wireTo(b, t.Name())
			g := newGuest(b, Config{Backend: t}, virtiotest.Options{})
			r := newRingDriver(g, g.rx())
			r.receiveBuffers(g)
			frame := append(make([]byte, headerSize), testFrame(size, 1)...)
			r.give(len(r.heads))
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			for left := b.N; left > 0; {
				some := min(left, len(r.heads))
				used := r.used()
				for range some {
					if _, err := unix.Write(w.peers[0], frame); err != nil {
						b.Fatal(err)
					}
				}
				for r.used()-used != uint16(some) {
				}
				r.give(some)
				left -= some
			}
		})
	}
}
