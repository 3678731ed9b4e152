package console

import (
	"context"
	"encoding/binary"
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
	opInput          // length 1: input of the host
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
	f.Add(request(queueTransmit, 0, 0x8000, 100))
	f.Add(append([]byte{opInput, 200}, request(queueReceive, 2, 0x8000, 100)...))
	f.Add(append(request(queueTransmit, 0, 0, 1<<20), opMove, opServe, queueTransmit))
	f.Add([]byte{opConfig, configEmergency, 4, 'x', 0, 0, 0})
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	f.Fuzz(func(t *testing.T, input []byte) {
		g := virtiotest.NewFuzzGuest(t)
		newDevice := func() *Device {
			d, err := New(Config{Warn: func(err error) { t.Errorf("warning: %v", err) }})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		s := &service{device: newDevice()}
		defer func() { s.device.Close() }()
		s.driver = virtio.Driver{Mem: g.Guest, Features: s.device.Features() | virtio.TransportFeatures}
		g.Enable(queues, s.driver.Features)
		s.receive, s.transmit = g.Queues[queueReceive], g.Queues[queueTransmit]
		serve := func(i int) {
			if s.failed {
				return
			}
			do := []func() (bool, error){s.serveReceive, s.serveTransmit}[i]
			_, err := do()
			s.failed = err != nil
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
			case opInput:
				s.device.Send(ended, in.Take(int(in.Number(1))))
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
