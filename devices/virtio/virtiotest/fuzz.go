package virtiotest

import (
	"encoding/binary"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/memory"
)

// Tape hands out the bytes of a fuzz input, and zeros behind its end.
type Tape []byte

// Take is the next n bytes.
func (t *Tape) Take(n int) []byte {
	p := make([]byte, n)
	*t = (*t)[copy(p, *t):]
	return p
}

// Number is the next n bytes, at most 4, as a little-endian number.
func (t *Tape) Number(n int) uint32 {
	var p [4]byte
	copy(p[:], t.Take(n))
	return binary.LittleEndian.Uint32(p[:])
}

// The queues of a FuzzGuest: queue i lies in the page 1+i, with the rings at these
// offsets.
const (
	fuzzQueueSize = 16
	fuzzAvail     = 0x400
	fuzzUsed      = 0x800
)

// FuzzGuest is a guest of which a fuzz input decides what it does: 1 MiB of memory, and
// queues in its first pages. It ends with the test.
type FuzzGuest struct {
	*memory.Guest
	Queues []*virtio.Queue
	t      testing.TB
}

// NewFuzzGuest makes the memory.
func NewFuzzGuest(t testing.TB) *FuzzGuest {
	t.Helper()
	mem, err := memory.New(memory.Options{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	return &FuzzGuest{Guest: mem, t: t}
}

// Enable makes n queues of a device whose driver has accepted the features.
func (g *FuzzGuest) Enable(n int, features uint64) {
	g.t.Helper()
	for i := range n {
		q, err := virtio.NewQueue(g.Guest, func() {})
		if err != nil {
			g.t.Fatal(err)
		}
		g.t.Cleanup(func() { q.Close() })
		at := fuzzPlace(i)
		if err := q.Enable(virtio.QueueConfig{Size: fuzzQueueSize, Desc: at, Avail: at + fuzzAvail, Used: at + fuzzUsed}, features); err != nil {
			g.t.Fatal(err)
		}
		g.Queues = append(g.Queues, q)
	}
}

func fuzzPlace(queue int) memory.GPA { return memory.GPA(1+queue) * memory.PageSize }

// Scribble takes an offset of 2 bytes, a length of 1 byte and so many bytes from the
// tape, and writes them to the memory.
func (g *FuzzGuest) Scribble(t *Tape) {
	g.t.Helper()
	at := memory.GPA(t.Number(2))
	if err := g.Write(at, t.Take(int(t.Number(1)))); err != nil {
		g.t.Fatal(err)
	}
}

// Request takes a queue and flags of 1 byte each, an address and a length of 4 bytes
// each from the tape, and makes a request of one descriptor with them. Of the flags only
// VIRTQ_DESC_F_WRITE counts. It returns the queue.
func (g *FuzzGuest) Request(t *Tape) (queue int) {
	g.t.Helper()
	le := binary.LittleEndian
	queue = int(t.Number(1)) % len(g.Queues)
	at := fuzzPlace(queue)
	flags := uint16(t.Number(1) & 2)
	desc := le.AppendUint64(nil, uint64(t.Number(4)))
	desc = le.AppendUint32(desc, t.Number(4))
	desc = le.AppendUint16(desc, flags)
	index, err := g.Uint16(at + fuzzAvail + 2)
	if err == nil {
		err = g.Write(at, desc)
	}
	if err == nil {
		err = g.PutUint16(at+fuzzAvail+4+memory.GPA(index%fuzzQueueSize)*2, 0)
	}
	if err == nil {
		err = g.PutUint16(at+fuzzAvail+2, index+1)
	}
	if err != nil {
		g.t.Fatal(err)
	}
	return queue
}
