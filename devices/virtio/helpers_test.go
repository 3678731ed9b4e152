package virtio_test

import (
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

const (
	noFeatures = virtio.FeatureVersion1
	indirect   = noFeatures | virtio.FeatureIndirect
	eventIdx   = noFeatures | virtio.FeatureEventIdx
)

// pair is both sides of a queue.
type pair struct {
	t          testing.TB
	mem        *virtiotest.Memory
	driver     *virtiotest.Queue
	device     *virtio.Queue
	interrupts int
}

func newPair(t testing.TB, mem *virtiotest.Memory, size uint16, features uint64) *pair {
	t.Helper()
	p := &pair{t: t, mem: mem, driver: virtiotest.NewQueue(t, mem, size)}
	p.device = newQueue(t, mem, func() { p.interrupts++ })
	if err := p.device.Enable(p.driver.Config(), features); err != nil {
		t.Fatal(err)
	}
	return p
}

func newQueue(t testing.TB, mem *virtiotest.Memory, notify func()) *virtio.Queue {
	t.Helper()
	q, err := virtio.NewQueue(mem.Guest, notify)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
	return q
}

// pop takes a chain that must be there.
func (p *pair) pop(c *virtio.Chain) {
	p.t.Helper()
	if ok, err := p.device.Pop(c); !ok || err != nil {
		p.t.Fatalf("pop: %v, %v", ok, err)
	}
}

// notifies tells whether Notify interrupts.
func (p *pair) notifies() bool {
	before := p.interrupts
	p.device.Notify()
	return p.interrupts > before
}

func readable(gpa memory.GPA, n uint32) virtiotest.Buffer {
	return virtiotest.Buffer{GPA: gpa, Len: n}
}

func writable(gpa memory.GPA, n uint32) virtiotest.Buffer {
	return virtiotest.Buffer{GPA: gpa, Len: n, Write: true}
}
