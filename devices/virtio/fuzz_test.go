package virtio_test

import (
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

// FuzzQueue serves queues whose memory is arbitrary, also while it changes.
//
// ops is what the device does, a byte each; memory is what lies at address 0,
// where the queue is: descriptors, avail and used ring one after the other.
func FuzzQueue(f *testing.F) {
	const ram, area = 1 << 20, 2048
	all := virtiotest.NewMemory(f, ram)
	q := newQueue(f, all, func() {})
	f.Fuzz(func(t *testing.T, size uint16, features byte, at uint16, ops, content []byte) {
		mem := all.For(t)
		clear(mem.Regions()[0].Mem[:area])
		mem.Set(0, content[:min(len(content), area)])
		n := memory.GPA(size)
		config := virtio.QueueConfig{
			Size: size, Desc: memory.GPA(at) &^ 15, Avail: memory.GPA(at)&^15 + n*16, Used: (memory.GPA(at)&^15 + n*18 + 6 + 3) &^ 3,
		}
		if q.Enable(config, uint64(features)<<28) != nil {
			return
		}
		defer q.Disable()
		var c virtio.Chain
		var inFlight []uint16
		for i, op := range ops[:min(len(ops), 4096)] {
			switch op % 8 {
			case 0:
				q.DisableKicks()
			case 1:
				if _, err := q.EnableKicks(); err != nil {
					return
				}
			case 2:
				q.Notify()
			case 3: // the driver changes something
				mem.Set(memory.GPA(op)<<3+memory.GPA(i%8), []byte{byte(i), op})
			case 4:
				if len(inFlight) > 0 {
					q.Push(inFlight[0], uint32(op))
					inFlight = inFlight[1:]
				}
			default:
				more, err := q.Pop(&c)
				if err != nil {
					return
				}
				if more {
					check(t, mem, &c, size)
					inFlight = append(inFlight, c.Head)
				}
			}
			if len(inFlight) > int(size) {
				t.Fatalf("%d chains in flight in a queue of %d", len(inFlight), size)
			}
			restoreSame(t, q, uint64(features)<<28)
		}
	})
}

// check says what is always true of a chain, whatever the driver does.
func check(t *testing.T, mem *virtiotest.Memory, c *virtio.Chain, size uint16) {
	if c.Head >= size || len(c.Read)+len(c.Write) == 0 || len(c.Read)+len(c.Write) > virtio.MaxChain {
		t.Fatalf("chain %d with %d buffers", c.Head, len(c.Read)+len(c.Write))
	}
	if length(t, mem, c.Read) != c.ReadLen || length(t, mem, c.Write) != c.WriteLen {
		t.Fatalf("chain %+v has wrong lengths", c)
	}
	var some [64]byte
	if n := c.CopyOut(c.ReadLen/2, some[:]); n != min(len(some), int(c.ReadLen-c.ReadLen/2)) {
		t.Fatalf("%d bytes copied from the middle of %d", n, c.ReadLen)
	}
	c.MarkWritten(c.WriteLen)
}

// length is how long a part of a chain is, all of which lies in RAM.
func length(t *testing.T, mem *virtiotest.Memory, part []virtio.Buffer) (n uint32) {
	for _, b := range part {
		if len(b.Data) == 0 || !mem.Contains(b.GPA, uint64(len(b.Data))) {
			t.Fatalf("buffer of %d bytes at %#x", len(b.Data), b.GPA)
		}
		n += uint32(len(b.Data))
	}
	return n
}

// restoreSame checks that a queue can always be saved and restored.
func restoreSame(t *testing.T, q *virtio.Queue, features uint64) {
	s := q.Save()
	if err := q.Restore(s, features); err != nil {
		t.Fatalf("state %+v: %v", s, err)
	}
	if again := q.Save(); again != s {
		t.Fatalf("state %+v, saved again %+v", s, again)
	}
}
