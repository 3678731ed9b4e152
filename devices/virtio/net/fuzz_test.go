package net

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

// Where things are in the memory of a fuzzed guest. An input reaches the first
// 64 KiB.
const (
	fuzzPairs     = 2
	fuzzQueues    = 2*fuzzPairs + 1
	fuzzQueueSize = 16
	fuzzQueueAt   = 0x1000 // that of queue i is at (i+1) times that
	fuzzAvail     = 0x400
	fuzzUsed      = 0x800
	fuzzMemory    = 1 << 20
)

// The operations of an input.
const (
	fuzzWrite    = iota // offset (2 bytes), length (1), bytes
	fuzzKick            // queue
	fuzzFrame           // length (2), length of what is given (1), bytes of header and frame
	fuzzConfig          // offset (8), length (1)
	fuzzPause           //
	fuzzReset           //
	fuzzDrain           // pair
	fuzzAnnounce        //
	fuzzRestore         //
	fuzzOperations
)

// fuzzed is a device and a driver that does whatever an input says.
type fuzzed struct {
	t        *testing.T
	mem      *memory.Guest
	wire     *wire
	device   *Device
	features uint64
	queues   []*virtio.Queue
	input    []byte
	failed   atomic.Bool
}

func newFuzzed(t *testing.T, input []byte) *fuzzed {
	mem, err := memory.New(memory.Options{Size: fuzzMemory, Name: "fuzz"})
	if err != nil {
		t.Fatal(err)
	}
	f := &fuzzed{t: t, mem: mem, wire: newWire(t, fuzzPairs), input: input}
	for _, fd := range f.wire.peers {
		if err := unix.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
	}
	if f.device, err = New(Config{MAC: testMAC, Backend: f.wire}); err != nil {
		t.Fatal(err)
	}
	// Which features the driver leaves out.
	f.features = (f.device.Features() | virtio.TransportFeatures) &^ uint64(f.number(4))
	for range fuzzQueues {
		q, err := virtio.NewQueue(mem, func() {})
		if err != nil {
			t.Fatal(err)
		}
		f.queues = append(f.queues, q)
	}
	f.enable()
	return f
}

// enable makes the queues new.
func (f *fuzzed) enable() {
	for i, q := range f.queues {
		at := memory.GPA(fuzzQueueAt * (i + 1))
		c := virtio.QueueConfig{Size: fuzzQueueSize, Desc: at, Avail: at + fuzzAvail, Used: at + fuzzUsed}
		if err := q.Enable(c, f.features); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fuzzed) start() {
	f.failed.Store(false)
	err := f.device.Start(virtio.Driver{
		Mem: f.mem, Features: f.features, Queues: f.queues, ConfigChanged: func() {},
		Fail: func(err error) {
			if err == nil {
				f.t.Error("failed without an error")
			}
			f.failed.Store(true)
		},
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fuzzed) close() {
	f.device.Stop()
	errs := []error{f.device.Close()}
	for _, q := range f.queues {
		errs = append(errs, q.Close())
	}
	if err := errors.Join(append(errs, f.mem.Close())...); err != nil {
		f.t.Error(err)
	}
}

// take takes up to n bytes of the input.
func (f *fuzzed) take(n int) []byte {
	n = min(n, len(f.input))
	p := f.input[:n]
	f.input = f.input[n:]
	return p
}

func (f *fuzzed) number(n int) uint64 {
	var p [8]byte
	copy(p[:], f.take(n))
	return binary.LittleEndian.Uint64(p[:])
}

// step does one operation of the input.
func (f *fuzzed) step() {
	switch f.number(1) % fuzzOperations {
	case fuzzWrite:
		at := memory.GPA(f.number(2))
		if err := f.mem.Write(at, f.take(int(f.number(1)))); err != nil {
			f.t.Fatal(err)
		}
	case fuzzKick:
		f.queues[f.number(1)%fuzzQueues].Kick()
	case fuzzFrame:
		p := make([]byte, f.number(2))
		copy(p, f.take(int(f.number(1))))
		if len(p) > 0 {
			_, _ = unix.Write(f.wire.peers[0], p) // it may be full
		}
	case fuzzConfig:
		p := make([]byte, f.number(1))
		at := f.number(8)
		f.device.ReadConfig(at, p)
		f.device.WriteConfig(at, p)
	case fuzzPause:
		f.device.Stop()
		f.start()
	case fuzzReset:
		f.device.Stop()
		f.device.Reset()
		f.enable()
		f.start()
	case fuzzDrain:
		p := make([]byte, maxFrame)
		_, _ = unix.Read(f.wire.peers[f.number(1)%fuzzPairs], p) // there may be none
	case fuzzAnnounce:
		f.device.Announce()
	case fuzzRestore:
		f.device.Stop()
		if err := f.device.Restore(f.device.Save()); err != nil {
			f.t.Errorf("own state refused: %v", err)
		}
		f.start()
	}
}

// works tests that the device sends and receives after a reset.
func (f *fuzzed) works() {
	f.device.Stop()
	f.device.Reset()
	if err := f.mem.Write(0, make([]byte, fuzzQueueAt*(fuzzQueues+1))); err != nil {
		f.t.Fatal(err)
	}
	f.enable()
	p := make([]byte, maxFrame)
	for n, err := 1, error(nil); err == nil && n > 0; {
		n, err = unix.Read(f.wire.peers[0], p) // what is left
	}
	f.start()
	const rx, tx, data = fuzzQueueAt, 2 * fuzzQueueAt, 0x20000
	sent := append(make([]byte, headerSize), testFrame(100, 77)...)
	f.write(data, sent)
	f.write(tx, descriptor(data, uint32(len(sent)), 0))
	f.write(tx+fuzzAvail, []byte{0, 0, 1, 0, 0, 0})
	f.queues[1].Kick()
	f.await("send", func() bool {
		n, _ := unix.Read(f.wire.peers[0], p)
		return n > 0 && bytes.Equal(p[headerSize:n], sent[headerSize:])
	})
	f.write(rx, descriptor(data, 1<<17, virtiotest.Write))
	f.write(rx+fuzzAvail, []byte{0, 0, 1, 0, 0, 0})
	f.queues[0].Kick()
	f.await("receive", func() bool {
		// One that waited in the device may be first.
		_, _ = unix.Write(f.wire.peers[0], sent)
		used, err := f.mem.LoadUint32(rx + fuzzUsed)
		return err == nil && used>>16 == 1
	})
	if f.failed.Load() {
		f.t.Error("the device failed after a reset")
	}
}

func (f *fuzzed) write(at memory.GPA, p []byte) {
	if err := f.mem.Write(at, p); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fuzzed) await(what string, ok func() bool) {
	for end := time.Now().Add(virtiotest.Patience); !ok(); time.Sleep(20 * time.Microsecond) {
		if time.Now().After(end) {
			f.t.Fatalf("the device does not %s after a reset", what)
		}
	}
}

func descriptor(at memory.GPA, n uint32, flags uint16) []byte {
	p := binary.LittleEndian.AppendUint64(nil, uint64(at))
	p = binary.LittleEndian.AppendUint32(p, n)
	return append(p, byte(flags), byte(flags>>8), 0, 0)
}

// FuzzDevice lets a driver write anything into its queues and buffers, at any
// time between kicks, frames, pauses and resets.
func FuzzDevice(f *testing.F) {
	write := func(at uint16, p []byte) []byte {
		return append([]byte{fuzzWrite, byte(at), byte(at >> 8), byte(len(p))}, p...)
	}
	queue := func(i uint16, descriptors ...byte) []byte {
		at := fuzzQueueAt * (i + 1)
		avail := write(at+fuzzAvail, []byte{0, 0, 1, 0, 0, 0})
		return append(append(write(at, descriptors), avail...), fuzzKick, byte(i))
	}
	join := func(parts ...[]byte) []byte { return append(make([]byte, 4), bytes.Join(parts, nil)...) }
	frame := append([]byte{fuzzFrame, 100, 0, 26}, append(make([]byte, headerSize), testFrame(ethernetHeader, 0)...)...)
	f.Add(join(queue(1, descriptor(0x8000, 100, 0)...), []byte{fuzzDrain, 0}))
	f.Add(join(queue(0, descriptor(0x8000, 2048, virtiotest.Write)...), frame))
	f.Add(join(frame, queue(0, descriptor(0x8000, 50, virtiotest.Write)...), []byte{fuzzPause}, queue(0, descriptor(0x9000, 90, virtiotest.Write)...)))
	f.Add(join(queue(1, descriptor(0xffff_ffff_0000, 100, 0)...), []byte{fuzzReset}))
	f.Add(join(queue(1, descriptor(0x8000, 100, virtiotest.Next)...)))
	command := append(descriptor(0x8000, 4, virtiotest.Next), descriptor(0x9000, 1, virtiotest.Write)...)
	command[14] = 1 // next
	for _, c := range [][]byte{{classMQ, mqPairsSet, 2, 0}, {classAnnounce, announceAck}, {classOffloads, offloadsSet, 0, 0}, {classMAC, macAddrSet, 2, 0}} {
		f.Add(join(write(0x8000, c), queue(4, command...), []byte{fuzzAnnounce, fuzzRestore}, frame))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		d := newFuzzed(t, input)
		defer d.close()
		d.start()
		for range 200 {
			if len(d.input) == 0 {
				break
			}
			d.step()
		}
		d.works()
	})
}
