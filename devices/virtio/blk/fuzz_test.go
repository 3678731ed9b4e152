package blk

import (
	"encoding/binary"
	"os"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

// script is the input of the fuzzer: a series of actions of a hostile driver.
type script []byte

func (s *script) byte() byte {
	if len(*s) == 0 {
		return 0
	}
	b := (*s)[0]
	*s = (*s)[1:]
	return b
}

func (s *script) uint(bytes int) uint64 {
	var p [8]byte
	for i := range bytes {
		p[i] = s.byte()
	}
	return binary.LittleEndian.Uint64(p[:])
}

// gpa is an address near the queue and the buffers, or anywhere at all.
func (s *script) gpa() memory.GPA {
	if x := s.uint(2); x < 0xf000 {
		return memory.GPA(x) * 16
	}
	return memory.GPA(s.uint(8))
}

// Actions of a script.
const (
	actDescriptor = iota // table entry, address, length, flags, next
	actBytes             // address, number, bytes
	actHeader            // address, type, sector
	actSegment           // address, sector, number, flags
	actPublish           // head
	actIndex             // avail index
	actKick
	actConfig // offset, number, bytes
	actPause
	actions
)

// fuzzGuest lets a driver do what a script says.
type fuzzGuest struct {
	*virtiotest.Driver
	device *Device
}

// play carries the script out.
func (g *fuzzGuest) play(s *script) {
	q := g.Queues[0]
	for len(*s) > 0 {
		switch s.byte() % actions {
		case actDescriptor:
			table, i := q.Desc, uint16(s.byte())%q.Size
			if i == q.Size-1 {
				table, i = s.gpa(), 0
			}
			if g.Memory.Contains(table, 16) {
				q.SetDescriptor(table, i, s.gpa(), uint32(s.uint(3)), uint16(s.byte()), uint16(s.byte()))
			}
		case actBytes:
			at, p := s.gpa(), make([]byte, s.byte())
			for i := range p {
				p[i] = s.byte()
			}
			_ = g.Memory.Write(at, p)
		case actHeader:
			_ = g.Memory.Write(s.gpa(), header(uint32(s.byte()), s.uint(8)))
		case actSegment:
			_ = g.Memory.Write(s.gpa(), segment(s.uint(8), uint32(s.uint(4)), uint32(s.byte())))
		case actPublish:
			q.Publish(uint16(s.byte()))
		case actIndex:
			q.SetAvailIndex(uint16(s.uint(2)))
		case actKick:
			q.Kick()
		case actConfig:
			offset, p := s.uint(1), make([]byte, s.byte()%9)
			for i := range p {
				p[i] = s.byte()
			}
			g.device.WriteConfig(offset, p)
			g.device.ReadConfig(offset, p)
		case actPause:
			g.Stop()
			g.Resume()
		}
	}
	q.Kick()
}

// FuzzDevice plays a hostile driver. The device must come to rest with every
// request that it took answered, leave the image as large as it was, and work
// again after a reset.
func FuzzDevice(f *testing.F) {
	const size = 64 << 10
	path, _ := makeImage(f, size)
	devices := []*Device{newDevice(f, Config{Path: path, Serial: "fuzz", engine: enginePool})}
	if hasRing(f) {
		path, _ := makeImage(f, size)
		devices = append(devices, newDevice(f, Config{Path: path, Serial: "fuzz", Direct: true, engine: engineRing, noInline: true}))
	}
	base, _ := makeImage(f, size)
	devices = append(devices, newDevice(f, Config{Path: base, Scratch: NewScratch(f.TempDir()), Serial: "fuzz"}))
	for _, seed := range fuzzSeeds() {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, device := range devices {
			s := script(data)
			o := virtiotest.Options{Memory: virtiotest.NewMemory(t, 1<<20), QueueSize: 16}
			o.Without = uint64(s.byte())<<24&^(1<<32) | uint64(s.byte())<<9
			g := &fuzzGuest{virtiotest.Start(t, device, o), device}
			g.play(&s)
			g.Stop()
			if q := g.Device(0).Save(); g.Err() == nil && q.Next != q.Used {
				t.Fatalf("stopped with %d requests in flight", q.Next-q.Used)
			}
			if info, err := os.Stat(device.config.Path); err != nil || info.Size() != size {
				t.Fatalf("the image has changed its size: %v, %v", info, err)
			}
			g.Reset()
			answer, _ := g.Queues[0].Do([][]byte{header(typeGetID, 0)}, 20, 1)
			if string(answer[0][:4]) != "fuzz" || answer[1][0] != 0 {
				t.Fatalf("after a reset: %q", answer)
			}
		}
	})
}

// fuzzSeeds are scripts that get far into the device.
func fuzzSeeds() [][]byte {
	// A chain of header, data and status at pages of their own.
	chain := func(kind byte, sector uint16, length uint32, dataFlags byte) []byte {
		p := []byte{0, 0}
		p = append(p, actHeader, 0, 0x10, kind, byte(sector), byte(sector>>8), 0, 0, 0, 0, 0, 0)
		p = append(p, actDescriptor, 0, 0, 0x10, 16, 0, 0, 1, 1)
		p = append(p, actDescriptor, 1, 0, 0x20, byte(length), byte(length>>8), byte(length>>16), dataFlags|1, 2)
		p = append(p, actDescriptor, 2, 0, 0x40, 1, 0, 0, 2, 0)
		return append(p, actPublish, 0, actKick)
	}
	segments := append([]byte{0, 0, actSegment, 0, 0x20, 8, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1}, chain(typeWriteZeroes, 0, 16, 0)[2:]...)
	return [][]byte{
		chain(typeIn, 1, 4096, 2),
		chain(typeOut, 2, 4096, 0),
		chain(typeFlush, 0, 512, 0),
		chain(typeGetID, 0, 20, 2),
		chain(typeDiscard, 0, 16, 0),
		segments,
		append(chain(typeIn, 120, 8192, 2), actPause, actPublish, 0, actConfig, 32, 1, 0, actKick),
		append(chain(typeOut, 0, 512, 0), actIndex, 0xff, 0xff, actKick),
		// Data over the rings.
		{0, 0, actDescriptor, 0, 0, 0x10, 16, 0, 0, 1, 1, actDescriptor, 1, 0, 1, 0, 2, 0, 3, 2, actDescriptor, 2, 0, 0x40, 1, 0, 0, 2, 0, actPublish, 0, actKick},
	}
}
