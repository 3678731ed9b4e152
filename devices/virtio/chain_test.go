package virtio_test

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

func TestChains(t *testing.T) {
	mem := virtiotest.NewMemory(t, 1<<20)
	at := mem.Alloc(4096, 4096)
	tests := []struct {
		name    string
		buffers []virtiotest.Buffer
		reads   int
	}{
		{"read", []virtiotest.Buffer{readable(at, 1)}, 1},
		{"write", []virtiotest.Buffer{writable(at, 4096)}, 0},
		{"both", []virtiotest.Buffer{readable(at, 16), readable(at+100, 7), writable(at+200, 512), writable(at, 1)}, 2},
		{"the same twice", []virtiotest.Buffer{readable(at, 64), writable(at, 64)}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t, mem, 8, indirect)
			heads := []uint16{p.driver.Chain(tt.buffers...), p.driver.IndirectChain(tt.buffers...)}
			p.driver.Publish(heads...)
			for _, head := range heads {
				var c virtio.Chain
				p.pop(&c)
				if c.Head != head {
					t.Errorf("head %d, want %d", c.Head, head)
				}
				if len(c.Read) != tt.reads || len(c.Read)+len(c.Write) != len(tt.buffers) {
					t.Fatalf("%d buffers to read and %d to write", len(c.Read), len(c.Write))
				}
				var lens [2]uint32
				for i, b := range slices.Concat(c.Read, c.Write) {
					want := tt.buffers[i]
					if b.GPA != want.GPA || uint32(len(b.Data)) != want.Len {
						t.Errorf("buffer %d: %d bytes at %#x, want %+v", i, len(b.Data), b.GPA, want)
					}
					if want.Write {
						lens[1] += want.Len
					} else {
						lens[0] += want.Len
					}
				}
				if c.ReadLen != lens[0] || c.WriteLen != lens[1] {
					t.Errorf("lengths %d and %d, want %v", c.ReadLen, c.WriteLen, lens)
				}
			}
		})
	}
}

// TestDirectThenIndirect checks the chain that has both, which a device must
// take (§2.7.5.3.2), and that the write flag of the table means nothing.
func TestDirectThenIndirect(t *testing.T) {
	mem := virtiotest.NewMemory(t, 1<<20)
	p := newPair(t, mem, 4, indirect)
	at := mem.Alloc(100, 16)
	table := mem.Alloc(32, 16)
	q := p.driver
	q.SetDescriptor(q.Desc, 1, at, 10, virtiotest.Next, 3)
	q.SetDescriptor(q.Desc, 3, table, 32, virtiotest.Indirect|virtiotest.Write, 0)
	q.SetDescriptor(table, 0, at, 20, virtiotest.Next, 1)
	q.SetDescriptor(table, 1, at, 30, virtiotest.Write, 0)
	q.Publish(1)
	var c virtio.Chain
	p.pop(&c)
	if c.ReadLen != 30 || c.WriteLen != 30 || len(c.Read) != 2 {
		t.Errorf("%d bytes to read and %d to write", c.ReadLen, c.WriteLen)
	}
}

// TestLongChains goes to the limits that a legal driver may go to.
func TestLongChains(t *testing.T) {
	mem := virtiotest.NewMemory(t, 1<<20)
	at := mem.Alloc(16, 16)
	long := slices.Repeat([]virtiotest.Buffer{readable(at, 16)}, virtio.MaxChain)
	p := newPair(t, mem, virtio.MaxChain, indirect)
	p.driver.Publish(p.driver.Chain(long...))
	var c virtio.Chain
	p.pop(&c)
	if len(c.Read) != virtio.MaxChain {
		t.Errorf("%d buffers", len(c.Read))
	}
	p.device.Push(c.Head, 0)
	p.driver.Take()
	p.driver.Publish(p.driver.IndirectChain(long...))
	p.pop(&c)
	if len(c.Read) != virtio.MaxChain {
		t.Errorf("%d indirect buffers", len(c.Read))
	}
}

// TestHostileChains has all that a driver may do wrong with descriptors.
func TestHostileChains(t *testing.T) {
	const size = 8
	const ram = uint64(memory.PCIHoleStart) + 1<<20
	const big = uint32(memory.PCIHoleStart) / 2
	tests := []struct {
		name string
		// set writes descriptors; the head is 0. The table is free memory
		// for an indirect one.
		set      func(q *virtiotest.Queue, table memory.GPA)
		features uint64
		head     uint16
	}{
		{name: "head behind the table", head: size},
		{name: "head far behind the table", head: math.MaxUint16},
		{name: "next behind the table", set: func(q *virtiotest.Queue, _ memory.GPA) {
			q.SetDescriptor(q.Desc, 0, 0x1000, 16, virtiotest.Next, size)
		}},
		{name: "a loop of one", set: func(q *virtiotest.Queue, _ memory.GPA) {
			q.SetDescriptor(q.Desc, 0, 0x1000, 16, virtiotest.Next, 0)
		}},
		{name: "a loop of three", set: func(q *virtiotest.Queue, _ memory.GPA) {
			for i := range uint16(3) {
				q.SetDescriptor(q.Desc, i, 0x1000, 16, virtiotest.Next, (i+1)%3)
			}
		}},
		{name: "empty", set: func(q *virtiotest.Queue, _ memory.GPA) {
			q.SetDescriptor(q.Desc, 0, 0x1000, 0, 0, 0)
		}},
		{name: "read after write", set: func(q *virtiotest.Queue, _ memory.GPA) {
			q.SetDescriptor(q.Desc, 0, 0x1000, 16, virtiotest.Next|virtiotest.Write, 1)
			q.SetDescriptor(q.Desc, 1, 0x1000, 16, 0, 0)
		}},
		{name: "4 GiB in all", set: func(q *virtiotest.Queue, _ memory.GPA) {
			q.SetDescriptor(q.Desc, 0, 0, big, virtiotest.Next, 1)
			q.SetDescriptor(q.Desc, 1, 0, big, virtiotest.Next, 2)
			q.SetDescriptor(q.Desc, 2, 0, big, virtiotest.Write, 0)
		}},
		{name: "into the PCI hole", set: func(q *virtiotest.Queue, _ memory.GPA) {
			q.SetDescriptor(q.Desc, 0, memory.PCIHoleStart-8, 16, 0, 0)
		}},
		{name: "in the PCI hole", set: func(q *virtiotest.Queue, _ memory.GPA) {
			q.SetDescriptor(q.Desc, 0, memory.ECAMStart, 16, virtiotest.Write, 0)
		}},
		{name: "over the PCI hole", set: func(q *virtiotest.Queue, _ memory.GPA) {
			q.SetDescriptor(q.Desc, 0, memory.PCIHoleStart-16, uint32(memory.HighStart-memory.PCIHoleStart)+32, 0, 0)
		}},
		{name: "over the end of RAM", set: func(q *virtiotest.Queue, _ memory.GPA) {
			q.SetDescriptor(q.Desc, 0, memory.HighStart+1<<20-16, 17, 0, 0)
		}},
		{name: "round the address space", set: func(q *virtiotest.Queue, _ memory.GPA) {
			q.SetDescriptor(q.Desc, 0, math.MaxUint64-7, 16, 0, 0)
		}},
		{name: "the longest", set: func(q *virtiotest.Queue, _ memory.GPA) {
			q.SetDescriptor(q.Desc, 0, 0, math.MaxUint32, 0, 0)
		}},
		{name: "indirect without the feature", features: noFeatures, set: func(q *virtiotest.Queue, table memory.GPA) {
			q.SetDescriptor(q.Desc, 0, table, 16, virtiotest.Indirect, 0)
			q.SetDescriptor(table, 0, 0x1000, 16, 0, 0)
		}},
		{name: "indirect in indirect", set: func(q *virtiotest.Queue, table memory.GPA) {
			q.SetDescriptor(q.Desc, 0, table, 16, virtiotest.Indirect, 0)
			q.SetDescriptor(table, 0, table, 16, virtiotest.Indirect, 0)
		}},
		{name: "indirect with next", set: func(q *virtiotest.Queue, table memory.GPA) {
			q.SetDescriptor(q.Desc, 0, table, 16, virtiotest.Indirect|virtiotest.Next, 1)
			q.SetDescriptor(table, 0, 0x1000, 16, 0, 0)
			q.SetDescriptor(q.Desc, 1, 0x1000, 16, 0, 0)
		}},
		{name: "empty indirect table", set: func(q *virtiotest.Queue, table memory.GPA) {
			q.SetDescriptor(q.Desc, 0, table, 0, virtiotest.Indirect, 0)
		}},
		{name: "odd indirect table", set: func(q *virtiotest.Queue, table memory.GPA) {
			q.SetDescriptor(q.Desc, 0, table, 17, virtiotest.Indirect, 0)
			q.SetDescriptor(table, 0, 0x1000, 16, 0, 0)
		}},
		{name: "indirect table outside of RAM", set: func(q *virtiotest.Queue, _ memory.GPA) {
			q.SetDescriptor(q.Desc, 0, memory.PCIHoleStart-16, 32, virtiotest.Indirect, 0)
		}},
		{name: "next behind the indirect table", set: func(q *virtiotest.Queue, table memory.GPA) {
			q.SetDescriptor(q.Desc, 0, table, 16, virtiotest.Indirect, 0)
			q.SetDescriptor(table, 0, 0x1000, 16, virtiotest.Next, 1)
		}},
		{name: "loop in the indirect table", set: func(q *virtiotest.Queue, table memory.GPA) {
			q.SetDescriptor(q.Desc, 0, table, 32, virtiotest.Indirect, 0)
			q.SetDescriptor(table, 0, 0x1000, 16, virtiotest.Next, 1)
			q.SetDescriptor(table, 1, 0x1000, 16, virtiotest.Next, 0)
		}},
		{name: "long indirect chain", set: func(q *virtiotest.Queue, table memory.GPA) {
			q.SetDescriptor(q.Desc, 0, table, 16*(virtio.MaxChain+1), virtiotest.Indirect, 0)
			for i := range uint16(virtio.MaxChain) {
				q.SetDescriptor(table, i, 0x1000, 16, virtiotest.Next, i+1)
			}
			q.SetDescriptor(table, virtio.MaxChain, 0x1000, 16, 0, 0)
		}},
		{name: "long chain that is indirect in the end", set: func(q *virtiotest.Queue, table memory.GPA) {
			q.SetDescriptor(q.Desc, 0, 0x1000, 16, virtiotest.Next, 1)
			q.SetDescriptor(q.Desc, 1, table, 16*virtio.MaxChain, virtiotest.Indirect, 0)
			for i := range uint16(virtio.MaxChain - 1) {
				q.SetDescriptor(table, i, 0x1000, 16, virtiotest.Next, i+1)
			}
			q.SetDescriptor(table, virtio.MaxChain-1, 0x1000, 16, 0, 0)
		}},
	}
	mem := virtiotest.NewMemory(t, ram)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			features := tt.features
			if features == 0 {
				features = indirect
			}
			p := newPair(t, mem, size, features)
			if tt.set != nil {
				tt.set(p.driver, mem.Alloc(16*(virtio.MaxChain+1), 16))
			}
			p.driver.Publish(tt.head)
			var c virtio.Chain
			for range 2 { // it stays broken
				if ok, err := p.device.Pop(&c); ok || !errors.Is(err, virtio.ErrBroken) {
					t.Fatalf("pop: %v, %v, want an error that the queue is broken", ok, err)
				}
			}
		})
	}
}

// TestLoopsEndEarly: the device need not go round a loop until the chain has
// become too long for any queue.
func TestLoopsEndEarly(t *testing.T) {
	mem := virtiotest.NewMemory(t, 1<<20)
	p := newPair(t, mem, 4, indirect)
	p.driver.SetDescriptor(p.driver.Desc, 0, 0x1000, 16, virtiotest.Next, 0)
	p.driver.Publish(0)
	var c virtio.Chain
	if ok, err := p.device.Pop(&c); ok || err == nil || len(c.Read) > 4 {
		t.Errorf("pop: %v, %v, with %d buffers", ok, err, len(c.Read))
	}
}

func TestCopy(t *testing.T) {
	mem := virtiotest.NewMemory(t, 1<<20)
	p := newPair(t, mem, 8, noFeatures)
	text := []byte("0123456789abcdefghij")
	out := mem.Put(text)
	in := mem.Alloc(3*memory.PageSize, memory.PageSize)
	p.driver.Publish(p.driver.Chain(
		readable(out, 5), readable(out+5, 1), readable(out+6, 14),
		writable(in, 4), writable(in+memory.PageSize, 4), writable(in+2*memory.PageSize, 8)))
	var c virtio.Chain
	p.pop(&c)

	for off := range uint32(len(text) + 2) {
		for n := range len(text) + 2 {
			got := make([]byte, n)
			want := text[min(int(off), len(text)):min(int(off)+n, len(text))]
			if m := c.CopyOut(off, got); m != len(want) || !bytes.Equal(got[:m], want) {
				t.Fatalf("CopyOut(%d) of %d: %q, want %q", off, n, got[:m], want)
			}
		}
	}

	mem.Dirty().Drain(make([]uint64, 4))
	if n := c.CopyIn(2, text[:4]); n != 4 {
		t.Errorf("CopyIn: %d bytes", n)
	}
	if n := c.CopyIn(10, text); n != 6 {
		t.Errorf("CopyIn to the end: %d bytes, want 6", n)
	}
	if n := c.CopyIn(16, text); n != 0 {
		t.Errorf("CopyIn behind the end: %d bytes", n)
	}
	var got []byte
	for _, b := range c.Write {
		got = append(got, b.Data...)
	}
	if want := "\x00\x000123\x00\x00\x00\x00012345"; string(got) != want {
		t.Errorf("written %q, want %q", got, want)
	}
	if n := mem.Dirty().Count(); n != 3 {
		t.Errorf("%d pages dirty, want 3", n)
	}

	mem.Dirty().Drain(make([]uint64, 4))
	c.MarkWritten(5)
	if n := mem.Dirty().Count(); n != 2 {
		t.Errorf("%d pages dirty after 5 bytes, want 2", n)
	}
	c.MarkWritten(math.MaxUint32)
	if n := mem.Dirty().Count(); n != 3 {
		t.Errorf("%d pages dirty after all of it, want 3", n)
	}
}
