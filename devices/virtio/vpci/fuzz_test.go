package vpci

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/rng"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

// FuzzTransport lets a driver do what it wants with a live entropy device: ops
// is a list of operations of opSize bytes, content what lies where the driver
// puts its queue. Whatever happened, a driver that behaves can use the device
// afterwards.
func FuzzTransport(f *testing.F) {
	all := virtiotest.NewMemory(f, 1<<20)
	f.Fuzz(func(t *testing.T, ops, content []byte) {
		mem := all.For(t)
		clear(mem.Regions()[0].Mem[:4*memory.PageSize])
		mem.Set(fuzzQueue, content[:min(len(content), memory.PageSize)])
		d, err := rng.New(rng.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
		r := newRig(t, d, mem)
		for n := 0; len(ops) >= opSize && n < 500; n++ {
			r.fuzz(ops[0], ops[1], binary.LittleEndian.Uint16(ops[2:]), uint64(binary.LittleEndian.Uint32(ops[4:])))
			ops = ops[opSize:]
		}
		r.behave(t)
	})
}

const (
	opSize    = 8
	fuzzQueue = memory.PageSize
)

// fuzz does one operation.
func (r *rig) fuzz(op, arg byte, offset uint16, value uint64) {
	width := 1 << (arg % 4)
	value |= value << 32
	at := uint64(offset) % (barSize - uint64(width) + 1)
	config := int(offset) % 256
	switch op % 12 {
	case 0: // a register, as it should be accessed
		reg := common[int(offset)%len(common)]
		r.write(barBase+uint64(reg.offset), reg.width, value)
	case 1: // a step of the initialization, so that fuzzing gets past it
		r.set(regStatus, running>>(3-arg%4)&running)
	case 2:
		r.setFeatures(virtio.FeatureVersion1 | value&3<<28)
	case 3: // the queue, somewhere in the content
		r.set(regQueueSelect, 0)
		r.set(regQueueSize, 1<<(arg%5))
		r.set(regQueueDesc, fuzzQueue+value&0xff0)
		r.set(regQueueAvail, fuzzQueue+uint64(offset)%memory.PageSize)
		r.set(regQueueUsed, fuzzQueue+value>>8&0xffc)
		r.set(regQueueEnable, 1)
	case 4:
		r.write(barBase+at, width, value)
	case 5:
		r.read(barBase+at, width)
	case 6:
		r.kick(int(arg & 3))
	case 7:
		r.configWrite(config, width, value)
	case 8:
		r.configRead(config, width)
	case 9: // the guest changes its memory
		r.mem.Set(fuzzQueue+memory.GPA(offset)%memory.PageSize, []byte{byte(value)})
	case 10:
		r.write(msixBase+uint64(offset)%memory.PageSize&^7, 4<<(arg&1), value)
	case 11:
		r.f.Pause()
		if s := r.f.Save(); arg&1 != 0 {
			if err := r.f.Restore(s); err != nil {
				r.t.Fatalf("state %+v: %v", s, err)
			}
		}
		r.f.Resume()
	}
	if s := r.f.readStatus(); s&^(statusOfDriver|statusNeedsReset) != 0 {
		r.t.Fatalf("status %#x", s)
	}
}

// behave is a driver that does all as it should.
func (r *rig) behave(t *testing.T) {
	r.configWrite(4, 2, 0)
	r.configWrite(0x10, 4, barBase)
	r.configWrite(0x14, 4, msixBase)
	r.negotiate(virtio.FeatureVersion1)
	r.addQueues()
	r.set(regStatus, running)
	q := r.queues[0]
	q.Publish(q.Chain(virtiotest.Buffer{GPA: r.mem.Alloc(64, 16), Len: 64, Write: true}))
	q.Kick()
	deadline := time.Now().Add(virtiotest.Patience)
	for q.UsedIndex() == 0 {
		if time.Now().After(deadline) {
			t.Fatalf("a good driver gets no answer: status %#x, %v", r.get(regStatus), r.f.Err())
		}
	}
	if _, n, ok := q.Take(); !ok || n != 64 {
		t.Fatalf("answer of %d bytes", n)
	}
}
