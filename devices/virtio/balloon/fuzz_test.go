package balloon

import (
	"encoding/binary"
	"math/bits"
	"reflect"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/memory"
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

// tape hands out the bytes of a fuzz input, and zeros behind its end.
type tape []byte

func (t *tape) take(n int) []byte {
	p := make([]byte, n)
	*t = (*t)[copy(p, *t):]
	return p
}

func (t *tape) number(n int) uint32 {
	var p [4]byte
	copy(p[:], t.take(n))
	return binary.LittleEndian.Uint32(p[:])
}

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
		mem, err := memory.New(memory.Options{Size: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer mem.Close()
		newDevice := func() *Device {
			d, err := New(Config{Mem: mem, FreePageReporting: true, Warn: func(err error) { t.Fatalf("warning: %v", err) }})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		d := newDevice()
		s := &service{
			device: d,
			driver: virtio.Driver{Mem: mem, Features: d.Features() | virtio.TransportFeatures, ConfigChanged: func() {}, Fail: func(error) {}},
			timer:  -1,
		}
		// Queue i lies in the pages from 1+i.
		place := func(i int) memory.GPA { return memory.GPA(1+i) * PageSize }
		roles := make([]func(*virtio.Queue) error, queues)
		for i := range queues {
			q, err := virtio.NewQueue(mem, func() {})
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			if err := q.Enable(virtio.QueueConfig{Size: 16, Desc: place(i), Avail: place(i) + 0x400, Used: place(i) + 0x800}, s.driver.Features); err != nil {
				t.Fatal(err)
			}
			s.driver.Queues = append(s.driver.Queues, q)
			roles[i] = s.role(i, q)
		}
		serve := func(i int) {
			if roles[i] != nil {
				s.serve(s.driver.Queues[i], roles[i])
			}
		}
		for in := tape(input); len(in) > 0; {
			switch in.number(1) % ops {
			case opMemory:
				at := memory.GPA(in.number(2))
				if err := mem.Write(at, in.take(int(in.number(1)))); err != nil {
					t.Fatal(err)
				}
			case opConfig:
				s.device.WriteConfig(uint64(in.number(1)), in.take(int(in.number(1))))
			case opServe:
				serve(int(in.number(1)) % queues)
			case opRequest:
				i := int(in.number(1)) % queues
				var desc []byte
				flags := uint16(in.number(1) & 2)
				desc = le.AppendUint64(desc, uint64(in.number(4)))
				desc = le.AppendUint32(desc, in.number(4))
				desc = le.AppendUint16(desc, flags)
				avail, _ := mem.Uint16(place(i) + 0x402)
				if err := mem.Write(place(i), desc); err != nil {
					t.Fatal(err)
				}
				mem.PutUint16(place(i)+0x404+memory.GPA(avail%16)*2, 0)
				mem.PutUint16(place(i)+0x402, avail+1)
				serve(i)
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
		if count != s.device.given.count || count > mem.Size()/PageSize {
			t.Errorf("%d pages are given up, counted as %d", count, s.device.given.count)
		}
	})
}
