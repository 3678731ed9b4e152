package balloon

import (
	"encoding/binary"
	"math/bits"
	"reflect"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

// What the bytes of a fuzz input stand for: operations with their arguments.
const (
	opMemory  = iota // offset 2, length 1, bytes: write the guest's memory
	opConfig         // offset 1, length 1, bytes: write the configuration
	opServe          // queue 1: kick it
	opRequest        // queue 1, flags 1, address 4, length 4: a request, and a kick
	opTick           // the timer of the statistics
	opMove           // save, and restore elsewhere
	ops
)

// FuzzDevice writes to the queues' memory and to the configuration space, and
// serves the queues.
func FuzzDevice(f *testing.F) {
	le := binary.LittleEndian
	request := func(queue, flags byte, address, length uint32) []byte {
		return le.AppendUint32(le.AppendUint32([]byte{opRequest, queue, flags}, address), length)
	}
	f.Add(append([]byte{opMemory, 0, 0x80, 8, 0x10, 0, 0, 0, 0x11, 0, 0, 0}, request(queueInflate, 0, 0x8000, 8)...))
	f.Add(append(append([]byte{opMemory, 0, 0x80, 4, 0x10, 0, 0, 0}, request(queueInflate, 0, 0x8000, 4)...), request(queueDeflate, 0, 0x8000, 4)...))
	f.Add(append(append(request(queueStats, 0, 0x8000, 40), opTick), request(queueStats, 0, 0x8000, 40)...))
	f.Add(request(queueReporting, 2, 0x10000, 0x20000))
	f.Add([]byte{opConfig, configPoison, 4, 1, 2, 3, 4, opMove, opServe, 0})
	f.Fuzz(func(t *testing.T, input []byte) {
		g := virtiotest.NewFuzzGuest(t)
		newDevice := func() *Device {
			d, err := New(Config{Mem: g.Guest, FreePageReporting: true, Warn: func(err error) { t.Fatalf("warning: %v", err) }})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		d := newDevice()
		s := &service{
			device: d,
			driver: virtio.Driver{Mem: g.Guest, Features: d.Features() | virtio.TransportFeatures, ConfigChanged: func() {}, Fail: func(error) {}},
			timer:  -1,
		}
		g.Enable(queues, s.driver.Features)
		s.driver.Queues = g.Queues
		roles := make([]func(*virtio.Queue) error, queues)
		for i, q := range g.Queues {
			roles[i] = s.role(i, q)
		}
		serve := func(i int) {
			if roles[i] != nil {
				s.serve(s.driver.Queues[i], roles[i])
			}
		}
		for in := virtiotest.Tape(input); len(in) > 0; {
			switch in.Number(1) % ops {
			case opMemory:
				g.Scribble(&in)
			case opConfig:
				s.device.WriteConfig(uint64(in.Number(1)), in.Take(int(in.Number(1))))
			case opServe:
				serve(int(in.Number(1)) % queues)
			case opRequest:
				serve(g.Request(&in))
			case opTick:
				s.tick()
			case opMove:
				saved := s.device.Save()
				other := newDevice()
				if err := other.Restore(saved); err != nil {
					t.Fatalf("restore what was saved: %v", err)
				}
				if again := other.Save(); !reflect.DeepEqual(again, saved) {
					t.Fatalf("restored %+v, saved %+v", again, saved)
				}
				s.device, s.failed = other, false
			}
		}
		var count uint64
		for _, word := range s.device.given.bits {
			count += uint64(bits.OnesCount64(word))
		}
		if count != s.device.given.count || count > g.Size()/PageSize {
			t.Errorf("%d pages are given up, counted as %d", count, s.device.given.count)
		}
	})
}
