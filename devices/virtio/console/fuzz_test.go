package console

import (
	"context"
	"encoding/binary"
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
	opInput          // length 1: input of the host
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
	f.Add(request(queueTransmit, 0, 0x8000, 100))
	f.Add(append([]byte{opInput, 200}, request(queueReceive, 2, 0x8000, 100)...))
	f.Add(append(request(queueTransmit, 0, 0, 1<<20), opMove, opServe, queueTransmit))
	f.Add([]byte{opConfig, configEmergency, 4, 'x', 0, 0, 0})
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	f.Fuzz(func(t *testing.T, input []byte) {
		mem, err := memory.New(memory.Options{Size: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer mem.Close()
		newDevice := func() *Device {
			d, err := New(Config{Warn: func(err error) { t.Errorf("warning: %v", err) }})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		s := &service{device: newDevice()}
		defer func() { s.device.Close() }()
		s.driver = virtio.Driver{Mem: mem, Features: s.device.Features() | virtio.TransportFeatures}
		// Queue i lies in the pages from 1+i.
		place := func(i int) memory.GPA { return memory.GPA(1+i) * memory.PageSize }
		var list []*virtio.Queue
		for i := range queues {
			q, err := virtio.NewQueue(mem, func() {})
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			if err := q.Enable(virtio.QueueConfig{Size: 16, Desc: place(i), Avail: place(i) + 0x400, Used: place(i) + 0x800}, s.driver.Features); err != nil {
				t.Fatal(err)
			}
			list = append(list, q)
		}
		s.receive, s.transmit = list[queueReceive], list[queueTransmit]
		serve := func(i int) {
			if s.failed {
				return
			}
			do := []func() (bool, error){s.serveReceive, s.serveTransmit}[i]
			_, err := do()
			s.failed = err != nil
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
				flags := uint16(in.number(1) & 2)
				var desc []byte
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
			case opInput:
				s.device.Send(ended, in.take(int(in.number(1))))
			case opMove:
				s.device.sent = s.sent
				saved := s.device.Save()
				other := newDevice()
				if err := other.Restore(saved); err != nil {
					t.Fatalf("restore what was saved: %v", err)
				}
				if again := other.Save(); !reflect.DeepEqual(again, saved) {
					t.Fatalf("restored %+v, saved %+v", again, saved)
				}
				s.device.Close()
				s.device, s.sent, s.failed = other, other.sent, false
			}
		}
		if n := len(s.device.input); n > inputLimit {
			t.Errorf("%d bytes of input are held", n)
		}
		if s.failed {
			return
		}
		// Whatever is in the queue, the device comes to its end.
		if err := s.device.Flush(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
