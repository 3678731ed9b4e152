package virtio_test

import (
	"encoding/json"
	"errors"
	"math"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

func TestEnable(t *testing.T) {
	const high = memory.HighStart
	mem := virtiotest.NewMemory(t, uint64(memory.PCIHoleStart)+4<<20)
	ok := virtio.QueueConfig{Size: 256, Desc: 0x1000, Avail: 0x2000, Used: 0x3000}
	tests := []struct {
		name   string
		change func(*virtio.QueueConfig)
		ok     bool
	}{
		{"plain", func(*virtio.QueueConfig) {}, true},
		{"one descriptor", func(c *virtio.QueueConfig) { c.Size = 1 }, true},
		{"the largest", func(c *virtio.QueueConfig) {
			*c = virtio.QueueConfig{Size: virtio.MaxQueueSize, Desc: 0, Avail: 0x80000, Used: 0xa0000}
		}, true},
		{"above the hole", func(c *virtio.QueueConfig) { c.Desc, c.Avail, c.Used = high, high+0x1000, high+0x2000 }, true},
		{"up to the hole", func(c *virtio.QueueConfig) { c.Desc = memory.PCIHoleStart - 0x1000 }, true},
		{"avail at half a word", func(c *virtio.QueueConfig) { c.Avail += 2 }, true},
		{"avail up to the hole", func(c *virtio.QueueConfig) { c.Avail = memory.PCIHoleStart - 6 - 512 }, true},
		{"used up to the hole", func(c *virtio.QueueConfig) { c.Used = memory.PCIHoleStart - 8 - 2048 }, true},
		{"at address 0", func(c *virtio.QueueConfig) { c.Avail = 0 }, true},

		{"no descriptors", func(c *virtio.QueueConfig) { c.Size = 0 }, false},
		{"odd size", func(c *virtio.QueueConfig) { c.Size = 255 }, false},
		{"odd large size", func(c *virtio.QueueConfig) { c.Size = math.MaxUint16 }, false},
		{"descriptors not aligned", func(c *virtio.QueueConfig) { c.Desc += 8 }, false},
		{"avail not aligned", func(c *virtio.QueueConfig) { c.Avail++ }, false},
		{"used not aligned", func(c *virtio.QueueConfig) { c.Used += 2 }, false},
		{"descriptors into the hole", func(c *virtio.QueueConfig) { c.Desc = memory.PCIHoleStart - 0xff0 }, false},
		{"avail into the hole", func(c *virtio.QueueConfig) { c.Avail = memory.PCIHoleStart - 4 - 512 }, false},
		{"used into the hole", func(c *virtio.QueueConfig) { c.Used = memory.PCIHoleStart - 4 - 2048 }, false},
		{"in the hole", func(c *virtio.QueueConfig) { c.Desc = memory.ECAMStart }, false},
		{"behind RAM", func(c *virtio.QueueConfig) { c.Used = high + 4<<20 }, false},
		{"end of the address space", func(c *virtio.QueueConfig) { c.Desc = math.MaxUint64 &^ 15 }, false},
		{"avail at the end of the address space", func(c *virtio.QueueConfig) { c.Avail = math.MaxUint64 &^ 1 }, false},
		{"used at the end of the address space", func(c *virtio.QueueConfig) { c.Used = math.MaxUint64 &^ 3 }, false},
	}
	for _, tt := range tests {
		q := newQueue(t, mem, func() {})
		c := ok
		tt.change(&c)
		err := q.Enable(c, noFeatures)
		if (err == nil) != tt.ok || q.Enabled() != tt.ok {
			t.Errorf("%s: enabled %v, %v", tt.name, q.Enabled(), err)
		}
		if err != nil && !errors.Is(err, virtio.ErrBroken) {
			t.Errorf("%s: %v does not say whose fault it is", tt.name, err)
		}
		if q.Enabled() {
			var chain virtio.Chain
			if more, err := q.Pop(&chain); more || err != nil {
				t.Errorf("%s: pop of an empty queue: %v, %v", tt.name, more, err)
			}
		}
	}
}

// TestWrapAround sends chains until all indices have wrapped around, in batches
// that fit the queue in all ways.
func TestWrapAround(t *testing.T) {
	mem := virtiotest.NewMemory(t, 8<<20)
	at := mem.Alloc(64, 16)
	for _, size := range []uint16{1, 2, 8, 256} {
		for _, features := range []uint64{noFeatures, eventIdx} {
			p := newPair(t, mem, size, features)
			q := p.driver
			var c virtio.Chain
			for sent, batch := 0, 1; sent < 70_000; batch = batch%int(size) + 1 {
				for range batch {
					q.Publish(q.Chain(writable(at, 8)))
				}
				q.SetUsedEvent(uint16(sent + batch - 1)) // interrupt for the last one
				for i := range batch {
					p.pop(&c)
					p.device.Push(c.Head, uint32(sent))
					if p.notifies() != (features == noFeatures || i == batch-1) {
						t.Fatalf("size %d: wrong interrupt after chain %d of %d at %d", size, i, batch, sent)
					}
					head, written, ok := q.Take()
					if !ok || head != c.Head || written != uint32(sent) {
						t.Fatalf("size %d: took %d, %d, %v; want %d, %d", size, head, written, ok, c.Head, sent)
					}
				}
				sent += batch
				if more, err := p.device.EnableKicks(); more || err != nil {
					t.Fatalf("size %d, at %d: %v, %v", size, sent, more, err)
				}
				if features == eventIdx && q.AvailEvent() != uint16(sent) {
					t.Fatalf("size %d: avail_event is %d, want %d", size, q.AvailEvent(), uint16(sent))
				}
			}
		}
	}
}

// TestEventIdx checks the arithmetic of §2.7.7.2: whether used_event lies in
// [old, new).
func TestEventIdx(t *testing.T) {
	tests := []struct {
		old    uint16
		pushed int
		event  uint16
		want   bool
	}{
		{0, 0, 0, false},
		{0, 1, 0, true},
		{0, 1, 1, false},
		{0, 1, 0xffff, false},
		{0, 3, 1, true},
		{0, 3, 2, true},
		{0, 3, 3, false},
		{10, 1, 9, false},
		{10, 1, 10, true},
		{0xffff, 1, 0xffff, true},
		{0xffff, 1, 0, false},
		{0xffff, 2, 0, true},
		{0xfffe, 4, 1, true},
		{0xfffe, 4, 2, false},
		{0x8000, 1, 0, false},
		{5, 0xffff, 4, false},
		{5, 0xffff, 3, true},
		// All the way round: whatever the event is, it was passed.
		{5, 0x10000, 4, true},
		{5, 0x10000, 5, true},
		{5, 0x10001, 100, true},
	}
	mem := virtiotest.NewMemory(t, 1<<20)
	for _, tt := range tests {
		p := newPair(t, mem, 4, eventIdx)
		s := p.device.Save()
		s.Next, s.Used, s.Notified = tt.old, tt.old, tt.old
		if err := p.device.Restore(s, eventIdx); err != nil {
			t.Fatal(err)
		}
		p.driver.SetUsedEvent(tt.event)
		for range tt.pushed {
			p.device.Push(0, 0)
		}
		if got := p.notifies(); got != tt.want {
			t.Errorf("from %#x, %d pushed, event %#x: interrupt %v, want %v", tt.old, tt.pushed, tt.event, got, tt.want)
		}
		if p.notifies() {
			t.Errorf("from %#x, %d pushed, event %#x: a second interrupt", tt.old, tt.pushed, tt.event)
		}
	}
}

func TestFlags(t *testing.T) {
	mem := virtiotest.NewMemory(t, 1<<20)
	p := newPair(t, mem, 4, noFeatures)
	q := p.driver
	p.device.DisableKicks()
	if q.UsedFlags() != virtiotest.NoNotify {
		t.Errorf("flags %#x after DisableKicks", q.UsedFlags())
	}
	q.SetAvailFlags(virtiotest.NoInterrupt)
	q.Publish(q.Chain(readable(0x1000, 1)), q.Chain(readable(0x1000, 1)))
	var c virtio.Chain
	p.pop(&c)
	p.device.Push(c.Head, 0)
	if q.UsedFlags() != virtiotest.NoNotify {
		t.Error("Push lost the flags")
	}
	if p.notifies() {
		t.Error("an interrupt that the driver does not want")
	}
	if more, err := p.device.EnableKicks(); !more || err != nil || q.UsedFlags() != 0 {
		t.Errorf("EnableKicks: %v, %v, flags %#x", more, err, q.UsedFlags())
	}
	p.pop(&c)
	q.SetAvailFlags(0)
	p.device.Push(c.Head, 0)
	if !p.notifies() {
		t.Error("no interrupt")
	}

	// With EVENT_IDX both sides ignore the flags.
	p = newPair(t, mem, 4, eventIdx)
	p.driver.SetAvailFlags(virtiotest.NoInterrupt)
	p.device.DisableKicks()
	p.device.Push(0, 0)
	if p.driver.UsedFlags() != 0 || !p.notifies() {
		t.Error("the flags mean something with EVENT_IDX")
	}
}

// TestAvailAtHalfAWord uses a queue whose avail ring is aligned to 2 bytes only.
func TestAvailAtHalfAWord(t *testing.T) {
	mem := virtiotest.NewMemory(t, 1<<20)
	for _, features := range []uint64{noFeatures, eventIdx} {
		q := virtiotest.NewQueue(t, mem, 4)
		q.Avail = mem.Alloc(64, 4) + 2
		p := &pair{t: t, mem: mem, driver: q}
		p.device = newQueue(t, mem, func() { p.interrupts++ })
		if err := p.device.Enable(q.Config(), features); err != nil {
			t.Fatal(err)
		}
		var c virtio.Chain
		for i := range 70_000 {
			head := q.Chain(readable(0x1000, uint32(1+i)))
			q.SetUsedEvent(uint16(i))
			q.Publish(head)
			p.pop(&c)
			if c.Head != head || c.ReadLen != uint32(1+i) {
				t.Fatalf("chain %d is %+v", i, c)
			}
			p.device.Push(c.Head, 0)
			if !p.notifies() {
				t.Fatalf("no interrupt for chain %d", i)
			}
			q.Take()
		}
		q.SetAvailFlags(virtiotest.NoInterrupt)
		p.device.Push(0, 0)
		if features == noFeatures && p.notifies() {
			t.Error("an interrupt that the driver does not want")
		}
	}
}

// TestAvailJumps moves the avail index to where it cannot be.
func TestAvailJumps(t *testing.T) {
	const size = 4
	mem := virtiotest.NewMemory(t, 1<<20)
	tests := []struct {
		name           string
		popped, pushed int
		index          uint16
		broken         bool
	}{
		{"full", 0, 0, size, false},
		{"one too many", 0, 0, size + 1, true},
		{"half round", 0, 0, 0x8000, true},
		{"back from the start", 0, 0, 0xffff, true},
		{"full again", 3, 3, 3 + size, false},
		{"back", 3, 3, 2, true},
		{"back to what is in flight", 3, 1, 2, true},
		{"all that is possible while some are in flight", 3, 1, 1 + size, false},
		{"more than is possible while some are in flight", 3, 1, 2 + size, true},
	}
	for _, tt := range tests {
		p := newPair(t, mem, size, noFeatures)
		q := p.driver
		var c virtio.Chain
		for range tt.popped {
			q.Publish(q.Chain(readable(0x1000, 1)))
			p.pop(&c)
		}
		for range tt.pushed {
			p.device.Push(0, 0)
		}
		q.SetDescriptor(q.Desc, 0, 0x1000, 1, 0, 0)
		for slot := range uint16(size) {
			q.SetAvail(slot, 0)
		}
		q.SetAvailIndex(tt.index)
		more, err := p.device.EnableKicks()
		if errors.Is(err, virtio.ErrBroken) != tt.broken || more == tt.broken {
			t.Errorf("%s: EnableKicks: %v, %v", tt.name, more, err)
		}
		more, err = p.device.Pop(&c)
		if errors.Is(err, virtio.ErrBroken) != tt.broken || more == tt.broken {
			t.Errorf("%s: Pop: %v, %v", tt.name, more, err)
		}
	}
}

func TestUnpopAndHold(t *testing.T) {
	mem := virtiotest.NewMemory(t, 1<<20)
	p := newPair(t, mem, 4, eventIdx)
	q := p.driver
	first, second := q.Chain(readable(0x1000, 1)), q.Chain(readable(0x1000, 2))
	q.Publish(first, second)
	var c virtio.Chain
	p.pop(&c)
	p.device.Unpop()
	p.device.Hold(true)
	if more, err := p.device.Pop(&c); more || err != nil {
		t.Errorf("pop of a held queue: %v, %v", more, err)
	}
	if more, err := p.device.EnableKicks(); more || err != nil {
		t.Errorf("EnableKicks of a held queue: %v, %v", more, err)
	}
	p.device.Hold(false)
	for _, want := range []uint16{first, second} {
		if p.pop(&c); c.Head != want {
			t.Errorf("chain %d, want %d", c.Head, want)
		}
	}
}

// TestQueueState moves a queue with traffic before and after, in the middle of
// a round of the indices.
func TestQueueState(t *testing.T) {
	mem := virtiotest.NewMemory(t, 1<<20)
	for _, features := range []uint64{noFeatures, eventIdx} {
		p := newPair(t, mem, 8, features)
		q := p.driver
		var c virtio.Chain
		for i := range 1000 {
			q.Publish(q.Chain(readable(0x1000, uint32(1+i))), q.Chain(writable(0x1000, 7)))
			p.device.DisableKicks()
			p.pop(&c)
			p.device.Push(c.Head, 0)

			text, err := json.Marshal(p.device.Save())
			if err != nil {
				t.Fatal(err)
			}
			var s virtio.QueueState
			if err := json.Unmarshal(text, &s); err != nil {
				t.Fatal(err)
			}
			next := newQueue(t, mem, func() { p.interrupts++ })
			if err := next.Restore(s, features); err != nil {
				t.Fatal(err)
			}
			p.device = next

			p.pop(&c)
			if c.WriteLen != 7 {
				t.Fatalf("chain %+v after the move", c)
			}
			p.device.Push(c.Head, 7)
			q.SetUsedEvent(uint16(2 * i)) // of the chain before the move
			if !p.notifies() {
				t.Fatal("the interrupt of a chain pushed before the move is lost")
			}
			if more, err := p.device.EnableKicks(); more || err != nil {
				t.Fatal(more, err)
			}
			if q.UsedFlags() != 0 {
				t.Fatal("kicks are still off")
			}
			for range 2 {
				if _, _, ok := q.Take(); !ok {
					t.Fatal("a chain is missing")
				}
			}
		}
	}
}

func TestRestoreRefuses(t *testing.T) {
	mem := virtiotest.NewMemory(t, 1<<20)
	p := newPair(t, mem, 8, noFeatures)
	good := p.device.Save()
	for name, change := range map[string]func(*virtio.QueueState){
		"size":      func(s *virtio.QueueState) { s.Config.Size = 9 },
		"no size":   func(s *virtio.QueueState) { s.Config.Size = 0 },
		"place":     func(s *virtio.QueueState) { s.Config.Desc = 1 << 40 },
		"in flight": func(s *virtio.QueueState) { s.Next = s.Used + 9 },
		"backwards": func(s *virtio.QueueState) { s.Next = s.Used - 1 },
		"flags":     func(s *virtio.QueueState) { s.Flags = 2 },
	} {
		s := good
		change(&s)
		q := newQueue(t, mem, func() {})
		if err := q.Restore(s, noFeatures); err == nil || q.Enabled() {
			t.Errorf("%s: restored, %v", name, err)
		}
	}
	q := newQueue(t, mem, func() {})
	if err := q.Restore(virtio.QueueState{}, noFeatures); err != nil || q.Enabled() || q.Save() != (virtio.QueueState{}) {
		t.Errorf("a queue that is not enabled: %v", err)
	}
}

// TestDirtyRings checks that a migration sees the writes of the device.
func TestDirtyRings(t *testing.T) {
	mem := virtiotest.NewMemory(t, 4<<20)
	mem.Alloc(memory.PageSize, memory.PageSize)
	p := newPair(t, mem, 1024, eventIdx)
	pages := func() uint64 {
		n := mem.Dirty().Count()
		mem.Dirty().Drain(make([]uint64, mem.Dirty().Pages()/64))
		return n
	}
	p.driver.SetAvailIndex(1024)
	pages()
	for i := range 1024 {
		p.device.Push(0, 0)
		// The page of the index, and one or two of the element.
		element := p.driver.Used + 4 + memory.GPA(i)*8
		touched := map[memory.GPA]bool{
			p.driver.Used / memory.PageSize: true, element / memory.PageSize: true, (element + 7) / memory.PageSize: true,
		}
		want := uint64(len(touched))
		if n := pages(); n != want {
			t.Fatalf("%d pages dirty after push %d, want %d", n, i, want)
		}
	}
	if _, err := p.device.EnableKicks(); err != nil {
		t.Fatal(err)
	}
	if n := pages(); n != 2 {
		t.Errorf("%d pages dirty after EnableKicks, want 2", n)
	}
}

func TestReadConfig(t *testing.T) {
	config := []byte{1, 2, 3, 4}
	for _, tt := range []struct {
		offset uint64
		want   string
	}{{0, "\x01\x02"}, {3, "\x04\x00"}, {4, "\x00\x00"}, {math.MaxUint64, "\x00\x00"}} {
		p := []byte{0xee, 0xee}
		virtio.ReadConfig(config, tt.offset, p)
		if string(p) != tt.want {
			t.Errorf("at %d: %x, want %x", tt.offset, p, tt.want)
		}
	}
}
