package virtio_test

import (
	"fmt"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

// serving is a queue that always has chains of n buffers, for the device's side.
func serving(t testing.TB, n int, through func(*virtiotest.Queue, ...virtiotest.Buffer) uint16) (*pair, func()) {
	mem := virtiotest.NewMemory(t, 1<<20)
	p := newPair(t, mem, 256, indirect|eventIdx)
	q := p.driver
	var buffers []virtiotest.Buffer
	for i := range n {
		buffers = append(buffers, virtiotest.Buffer{GPA: mem.Alloc(64, 64), Len: 64, Write: i > 0})
	}
	head := through(q, buffers...)
	for slot := range q.Size {
		q.SetAvail(slot, head)
	}
	index := q.AvailIndex()
	var c virtio.Chain
	return p, func() {
		index++
		// Not through the helpers, which take longer than all the rest.
		if err := mem.StoreUint32(q.Avail, uint32(index)<<16); err != nil {
			t.Fatal(err)
		}
		if ok, err := p.device.Pop(&c); !ok || err != nil {
			t.Fatal(ok, err)
		}
		p.device.Push(c.Head, 64)
		p.device.Notify()
		if _, err := p.device.EnableKicks(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAllocations(t *testing.T) {
	for _, n := range []int{1, 3, 18} {
		for name, through := range chains {
			p, once := serving(t, n, through)
			if allocs := testing.AllocsPerRun(1000, once); allocs != 0 {
				t.Errorf("%s chain of %d: %v allocations", name, n, allocs)
			}
			if allocs := testing.AllocsPerRun(100, p.device.Kick); allocs != 0 {
				t.Errorf("%v allocations a kick", allocs)
			}
		}
	}
}

var chains = map[string]func(*virtiotest.Queue, ...virtiotest.Buffer) uint16{
	"direct":   (*virtiotest.Queue).Chain,
	"indirect": (*virtiotest.Queue).IndirectChain,
}

// BenchmarkQueue is a whole request without the device: publish, pop, push,
// notify, look again.
func BenchmarkQueue(b *testing.B) {
	for _, name := range []string{"direct", "indirect"} {
		for _, n := range []int{1, 3, 18} {
			b.Run(fmt.Sprintf("%s-%d", name, n), func(b *testing.B) {
				_, once := serving(b, n, chains[name])
				b.ReportAllocs()
				for b.Loop() {
					once()
				}
			})
		}
	}
}

func BenchmarkKick(b *testing.B) {
	q := newQueue(b, virtiotest.NewMemory(b, 1<<20), func() {})
	b.ReportAllocs()
	for b.Loop() {
		q.Kick()
	}
}
