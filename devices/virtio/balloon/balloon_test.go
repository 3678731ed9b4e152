package balloon

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

// spare is where the pages begin that the tests give up; the queues lie below.
const spare memory.GPA = 8 << 20

func start(t testing.TB, c Config, o virtiotest.Options) (*Device, *virtiotest.Driver) {
	t.Helper()
	if o.Memory == nil {
		o.Memory = virtiotest.NewMemory(t, 64<<20)
	}
	c.Mem = o.Memory.Guest
	if c.Warn == nil {
		c.Warn = func(err error) { t.Errorf("warning: %v", err) }
	}
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return d, virtiotest.Start(t, d, o)
}

// touch makes n bytes of the guest's memory resident.
func touch(t testing.TB, m *virtiotest.Memory, gpa memory.GPA, n uint64) {
	t.Helper()
	for end := gpa + memory.GPA(n); gpa < end; gpa += PageSize {
		m.Set(gpa, []byte{0xa5})
	}
}

func resident(t testing.TB, m *virtiotest.Memory) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(m.FD(), &st); err != nil {
		t.Fatal(err)
	}
	return uint64(st.Blocks) * 512
}

// pfns are the page numbers of n pages from gpa, in the given order.
func pfns(gpa memory.GPA, order []int) []byte {
	var p []byte
	for _, i := range order {
		p = binary.LittleEndian.AppendUint32(p, uint32(gpa/PageSize)+uint32(i))
	}
	return p
}

func upTo(n int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	return order
}

// TestInflate gives pages up and takes them back, and looks at what the host
// spends.
func TestInflate(t *testing.T) {
	falling := upTo(256)
	for i := range falling {
		falling[i] = 255 - i
	}
	for name, order := range map[string][]int{
		"rising": upTo(256), "falling": falling, "shuffled": rand.New(rand.NewPCG(1, 2)).Perm(256),
		"twice each": append(upTo(128), upTo(128)...), "gaps": {0, 1, 2, 5, 7, 8, 200},
	} {
		t.Run(name, func(t *testing.T) {
			m := virtiotest.NewMemory(t, 64<<20)
			d, driver := start(t, Config{}, virtiotest.Options{Memory: m})
			touch(t, m, spare, 2<<20)
			before := resident(t, m)
			distinct := make(map[int]bool)
			for _, i := range order {
				distinct[i] = true
			}
			n := uint64(len(distinct))

			driver.Queues[queueInflate].Do([][]byte{pfns(spare, order)})
			// The request itself may take a page.
			if got := before - resident(t, m); got > n*PageSize || got+2*PageSize < n*PageSize {
				t.Errorf("%d bytes went back to the host, want %d", got, n*PageSize)
			}
			for i := range 512 {
				want := byte(0xa5)
				if distinct[i] {
					want = 0
				}
				if got := m.Get(spare+memory.GPA(i)*PageSize, 1)[0]; got != want {
					t.Fatalf("page %d has %#x, want %#x", i, got, want)
				}
			}
			if s := d.Stats(); s.ActualPages != n {
				t.Errorf("%d pages are given up, want %d", s.ActualPages, n)
			}
			bits := d.Ballooned()
			for i := range 512 {
				page := uint64(spare)/PageSize + uint64(i)
				if got := bits[page/64]>>(page%64)&1 == 1; got != distinct[i] {
					t.Fatalf("page %d: given up %v, want %v", i, got, distinct[i])
				}
			}

			driver.Queues[queueDeflate].Do([][]byte{pfns(spare, order)})
			if s := d.Stats(); s.ActualPages != 0 {
				t.Errorf("%d pages are given up after they were taken back", s.ActualPages)
			}
			touch(t, m, spare, 2<<20)
			if got := resident(t, m); got < before {
				t.Errorf("%d bytes are resident after the guest used them again, want %d", got, before)
			}
		})
	}
}

// TestGarbage has page numbers that are no RAM: the hole and the end of the
// address space among them.
func TestGarbage(t *testing.T) {
	m := virtiotest.NewMemory(t, uint64(memory.PCIHoleStart)+1<<20)
	d, driver := start(t, Config{}, virtiotest.Options{Memory: m})
	var p []byte
	for _, pfn := range []uint32{
		math.MaxUint32, math.MaxUint32 - 1, uint32(memory.PCIHoleStart / PageSize), uint32(memory.HighStart/PageSize) - 1,
		uint32(memory.HighStart/PageSize) + 256, uint32(memory.PCIHoleStart/PageSize) - 1, uint32(memory.HighStart / PageSize),
	} {
		p = binary.LittleEndian.AppendUint32(p, pfn)
	}
	driver.Queues[queueInflate].Do([][]byte{p})
	if s := d.Stats(); s.ActualPages != 2 {
		t.Errorf("%d pages are given up, want the two that are RAM", s.ActualPages)
	}
	driver.Queues[queueDeflate].Do([][]byte{p})
	if s := d.Stats(); s.ActualPages != 0 {
		t.Errorf("%d pages are given up", s.ActualPages)
	}
}

// TestMalformed has requests after which the driver has to reset the device, and
// sees it work again.
func TestMalformed(t *testing.T) {
	le := binary.LittleEndian
	tests := []struct {
		name  string
		queue int
		out   []byte
		in    int
		want  error
	}{
		{"half a page number", queueInflate, []byte{1, 2}, 0, errPFNLength},
		{"too many page numbers", queueInflate, make([]byte, 4*maxPFNs+4), 0, errPFNLength},
		{"a writable buffer", queueInflate, le.AppendUint32(nil, 9999), 8, errWritable},
		{"nothing but a writable buffer", queueDeflate, nil, 8, errWritable},
		{"writable statistics", queueStats, nil, 100, errWritable},
		{"a readable report", queueReporting, make([]byte, PageSize), 0, errReadable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, driver := start(t, Config{FreePageReporting: true}, virtiotest.Options{})
			var buffers []virtiotest.Buffer
			if tt.out != nil {
				buffers = append(buffers, virtiotest.Buffer{GPA: driver.Memory.Put(tt.out), Len: uint32(len(tt.out))})
			}
			if tt.in > 0 {
				buffers = append(buffers, virtiotest.Buffer{GPA: driver.Memory.Alloc(uint64(tt.in), 16), Len: uint32(tt.in), Write: true})
			}
			q := driver.Queues[tt.queue]
			q.Publish(q.Chain(buffers...))
			q.Kick()
			if err := driver.AwaitFail(); !errors.Is(err, tt.want) {
				t.Errorf("failed with %v, want %v", err, tt.want)
			}
			driver.Reset()
			driver.Queues[queueInflate].Do([][]byte{pfns(spare, upTo(3))})
			if n := d.Stats().ActualPages; n != 3 {
				t.Errorf("%d pages given up after the reset, want 3", n)
			}
		})
	}
}

// TestFlood has more requests than one turn serves.
func TestFlood(t *testing.T) {
	d, driver := start(t, Config{}, virtiotest.Options{})
	q := driver.Queues[queueInflate]
	const n = 3*maxTurn + 5
	for i := range n {
		at := driver.Memory.Put(pfns(spare, []int{i}))
		q.Publish(q.Chain(virtiotest.Buffer{GPA: at, Len: 4}))
	}
	q.Kick()
	for range n {
		q.Wait()
	}
	if got := d.Stats().ActualPages; got != n {
		t.Errorf("%d pages given up, want %d", got, n)
	}
}

// TestReporting gives back what the guest reports as free.
func TestReporting(t *testing.T) {
	tests := []struct {
		name   string
		skip   map[int]bool
		queue  int
		poison uint32
		freed  uint64
	}{
		{"queue 4, as the specification has it", nil, queueReporting, 0, 4 << 20},
		{"queue 3, as Linux had it", map[int]bool{4: true}, 3, 0, 4 << 20},
		{"pages are poisoned", nil, queueReporting, 0xaaaaaaaa, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, driver := start(t, Config{FreePageReporting: true}, virtiotest.Options{Skip: tt.skip})
			d.WriteConfig(configPoison, binary.LittleEndian.AppendUint32(nil, tt.poison))
			touch(t, driver.Memory, spare, 8<<20)
			before := resident(t, driver.Memory)
			q := driver.Queues[tt.queue]
			q.Publish(q.Chain(
				virtiotest.Buffer{GPA: spare, Len: 2 << 20, Write: true},
				virtiotest.Buffer{GPA: spare + 4<<20, Len: 2 << 20, Write: true},
			))
			q.Kick()
			if _, n := q.Wait(); n != 0 {
				t.Errorf("the device says that it wrote %d bytes", n)
			}
			if freed := before - resident(t, driver.Memory); freed != tt.freed {
				t.Errorf("%d bytes went back to the host, want %d", freed, tt.freed)
			}
			if s := d.Stats(); s.Reported != tt.freed || s.ActualPages != 0 {
				t.Errorf("statistics: %+v", s)
			}
		})
	}
	d, _ := start(t, Config{}, virtiotest.Options{})
	if d.Features()&featureReporting != 0 {
		t.Error("free page reporting is offered without being asked for")
	}
}

func TestTarget(t *testing.T) {
	d, driver := start(t, Config{Target: 8 << 20}, virtiotest.Options{})
	if got := driver.Config(configNumPages, 4); !bytes.Equal(got, []byte{0, 8, 0, 0}) {
		t.Errorf("num_pages is % x", got)
	}
	if err := d.SetTarget(16<<20 + 5); err != nil {
		t.Fatal(err)
	}
	driver.AwaitConfigChange()
	if got := driver.Config(configNumPages, 4); !bytes.Equal(got, []byte{0, 0x10, 0, 0}) || d.Target() != 16<<20 {
		t.Errorf("num_pages is % x, target %d", got, d.Target())
	}
	if err := d.SetTarget(64<<20 + 1); err == nil {
		t.Error("a balloon larger than the guest")
	}
	if _, err := New(Config{Mem: driver.Memory.Guest, Target: 65 << 20}); err == nil {
		t.Error("a new balloon larger than the guest")
	}
	driver.Reset()
	if d.Target() != 16<<20 {
		t.Errorf("a reset changed the target to %d", d.Target())
	}
}

func TestConfigSpace(t *testing.T) {
	d, driver := start(t, Config{Target: 1 << 20}, virtiotest.Options{})
	tests := []struct {
		offset uint64
		p      []byte
	}{
		{0, bytes.Repeat([]byte{0x11}, 32)}, // only what is writable changes
		{5, []byte{0x22, 0x33}},
		{15, []byte{0x44, 0x55, 0x66}},
		{math.MaxUint64, []byte{1, 2, 3, 4, 5, 6}},
		{math.MaxUint64 - 11, bytes.Repeat([]byte{7}, 32)},
		{1 << 40, []byte{1}},
	}
	for _, tt := range tests {
		d.WriteConfig(tt.offset, tt.p)
	}
	want := []byte{0, 1, 0, 0, 0x11, 0x22, 0x33, 0x11, 0, 0, 0, 0, 0x11, 0x11, 0x11, 0x44, 0, 0, 0, 0}
	if got := driver.Config(0, 20); !bytes.Equal(got, want) {
		t.Errorf("configuration is\n% x, want\n% x", got, want)
	}
}

// statsRequest is an answer with two known statistics and two that are not.
func statsRequest(free uint64) []byte {
	var p []byte
	for _, s := range []struct {
		tag   uint16
		value uint64
	}{{statFreeMemory, free}, {statTags, 9}, {statDirectReclaim, 12}, {0xffff, 1}} {
		p = binary.LittleEndian.AppendUint16(p, s.tag)
		p = binary.LittleEndian.AppendUint64(p, s.value)
	}
	return append(p, 1, 2, 3)
}

func TestStats(t *testing.T) {
	d, driver := start(t, Config{}, virtiotest.Options{})
	if s := d.Stats(); !s.Updated.IsZero() {
		t.Errorf("statistics before there are any: %+v", s)
	}
	q := driver.Queues[queueStats]
	at := driver.Memory.Put(statsRequest(1000))
	ask := func() {
		t.Helper()
		q.Publish(q.Chain(virtiotest.Buffer{GPA: at, Len: uint32(len(statsRequest(0)))}))
		q.Kick()
	}
	ask()
	if err := d.SetStatsInterval(MinStatsInterval); err != nil {
		t.Fatal(err)
	}
	for round := range uint64(3) {
		q.Wait()
		s := d.Stats()
		if s.FreeMemory != 1000+round || s.DirectReclaim != 12 || s.Updated.IsZero() {
			t.Errorf("round %d: %+v", round, s)
		}
		driver.Memory.Set(at, statsRequest(1001+round))
		ask()
	}
	// A pause while the device holds the buffer.
	driver.Stop()
	driver.Resume()
	q.Wait()
	if err := d.SetStatsInterval(MinStatsInterval - 1); err == nil {
		t.Error("an interval that is too short")
	}
}

// TestStatsTwice has a driver with two buffers in the queue of the statistics.
func TestStatsTwice(t *testing.T) {
	_, driver := start(t, Config{}, virtiotest.Options{})
	q := driver.Queues[queueStats]
	at := driver.Memory.Put(statsRequest(1))
	first := q.Chain(virtiotest.Buffer{GPA: at, Len: 20})
	q.Publish(first, q.Chain(virtiotest.Buffer{GPA: at, Len: 20}))
	q.Kick()
	if head, _ := q.Wait(); head != first {
		t.Errorf("the device gave back chain %d, want the first, %d", head, first)
	}
}

func TestMove(t *testing.T) {
	d, driver := start(t, Config{Target: 1 << 20, StatsInterval: time.Minute}, virtiotest.Options{})
	driver.Queues[queueInflate].Do([][]byte{pfns(spare, upTo(100))})
	q := driver.Queues[queueStats]
	q.Publish(q.Chain(virtiotest.Buffer{GPA: driver.Memory.Put(statsRequest(5)), Len: 40}))
	q.Kick()
	d.WriteConfig(configActual, []byte{100})
	if err := d.SetTarget(2 << 20); err != nil {
		t.Fatal(err)
	}

	other, err := New(Config{Mem: driver.Memory.Guest})
	if err != nil {
		t.Fatal(err)
	}
	driver.Move(other, func() {
		saved, err := json.Marshal(d.Save())
		if err != nil {
			t.Fatal(err)
		}
		var s State
		if err := json.Unmarshal(saved, &s); err != nil {
			t.Fatal(err)
		}
		if err := other.Restore(s); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(other.Save(), s) {
			t.Errorf("restored %+v, saved %+v", other.Save(), s)
		}
	})
	if other.Target() != 2<<20 || other.Stats().ActualPages != 100 {
		t.Errorf("target %d, %d pages given up", other.Target(), other.Stats().ActualPages)
	}
	if got := driver.Config(configActual, 4); got[0] != 100 {
		t.Errorf("actual is % x", got)
	}
	// The buffer for statistics has moved too.
	if err := other.SetStatsInterval(MinStatsInterval); err != nil {
		t.Fatal(err)
	}
	q.Wait()
	if s := other.Stats(); s.FreeMemory != 5 {
		t.Errorf("statistics after the move: %+v", s)
	}
	driver.Queues[queueDeflate].Do([][]byte{pfns(spare, upTo(50))})
	if n := other.Stats().ActualPages; n != 50 {
		t.Errorf("%d pages given up, want 50", n)
	}
}

func TestRestoreRejects(t *testing.T) {
	m := virtiotest.NewMemory(t, 1<<20+PageSize)
	d, err := New(Config{Mem: m.Guest})
	if err != nil {
		t.Fatal(err)
	}
	good := d.Save()
	for name, change := range map[string]func(*State){
		"version":     func(s *State) { s.Version = 2 },
		"target":      func(s *State) { s.NumPages = 258 },
		"interval":    func(s *State) { s.StatsInterval = -1 },
		"short":       func(s *State) { s.Ballooned = s.Ballooned[1:] },
		"other pages": func(s *State) { s.Ballooned[257/8] = 0xff },
	} {
		s := good
		s.Ballooned = bytes.Clone(s.Ballooned)
		change(&s)
		if err := d.Restore(s); err == nil {
			t.Errorf("%s: restored", name)
		}
	}
	if err := d.Restore(good); err != nil {
		t.Error(err)
	}
}

// TestHugePages gives huge pages back only when they are given up wholly, and
// has them there again when the guest takes back a part.
func TestHugePages(t *testing.T) {
	g, err := memory.New(memory.Options{Size: 16 << 20, HugePages: true})
	if err != nil {
		free, _ := os.ReadFile("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
		t.Skipf("the host has no eight free huge pages (%s): %v", bytes.TrimSpace(free), err)
	}
	defer g.Close()
	d, err := New(Config{Mem: g, FreePageReporting: true, Warn: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	if f := d.Features(); f&featureMustTellHost == 0 || f&featureReporting != 0 {
		t.Errorf("features %#x", f)
	}
	for gpa := memory.GPA(0); gpa < 16<<20; gpa += 2 << 20 {
		if err := g.PutUint32(gpa, 7); err != nil {
			t.Fatal(err)
		}
	}
	blocks := func() int64 {
		var st unix.Stat_t
		if err := unix.Fstat(g.FD(), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512 >> 20
	}
	numbers := func(from, n int) []uint32 {
		list := make([]uint32, n)
		for i := range list {
			list[i] = uint32(from + i)
		}
		return list
	}
	steps := []struct {
		name string
		do   func()
		want int64 // MiB that are resident
	}{
		{"half a page", func() { d.giveUp(numbers(512, 256), true) }, 16},
		{"the other half, and half of the next", func() { d.giveUp(numbers(768, 512), true) }, 14},
		{"without MUST_TELL_HOST", func() { d.giveUp(numbers(1280, 256), false) }, 14},
		{"one small page back", func() {
			if err := d.takeBack(numbers(700, 1)); err != nil {
				t.Error(err)
			}
		}, 16},
		{"and again", func() { d.giveUp(numbers(700, 1), true) }, 14},
		{"reset", d.Reset, 16},
	}
	for _, s := range steps {
		s.do()
		if got := blocks(); got != s.want {
			t.Fatalf("%s: %d MiB are resident, want %d", s.name, got, s.want)
		}
	}
}

// TestAllocs checks that requests do not allocate.
func TestAllocs(t *testing.T) {
	_, driver := start(t, Config{FreePageReporting: true}, virtiotest.Options{})
	numbers := pfns(spare, rand.New(rand.NewPCG(1, 2)).Perm(512)[:256])
	for queue, buffer := range map[int]virtiotest.Buffer{
		queueInflate:   {GPA: driver.Memory.Put(numbers), Len: uint32(len(numbers))},
		queueDeflate:   {GPA: driver.Memory.Put(numbers), Len: uint32(len(numbers))},
		queueStats:     {GPA: driver.Memory.Put(statsRequest(1)), Len: 40},
		queueReporting: {GPA: spare, Len: 2 << 20, Write: true},
	} {
		q := driver.Queues[queue]
		first, second := q.Chain(buffer), q.Chain(buffer)
		if queue == queueStats {
			// It comes back when the next one arrives.
			q.Publish(first)
			first = second
		}
		request := func() {
			before := q.UsedIndex()
			q.Publish(first)
			q.Kick()
			for q.UsedIndex() == before {
				runtime.Gosched()
			}
		}
		request()
		if n := testing.AllocsPerRun(50, request); n != 0 {
			t.Errorf("queue %d: %v allocations a request", queue, n)
		}
	}
}

// BenchmarkInflate gives up 1 MiB in one request, as Linux does.
func BenchmarkInflate(b *testing.B) {
	for name, order := range map[string][]int{"one run": upTo(256), "256 runs": rand.New(rand.NewPCG(1, 2)).Perm(512)[:256]} {
		b.Run(name, func(b *testing.B) {
			_, driver := start(b, Config{}, virtiotest.Options{})
			request := [][]byte{pfns(spare, order)}
			b.SetBytes(256 * PageSize)
			for b.Loop() {
				b.StopTimer()
				touch(b, driver.Memory, spare, 2<<20)
				b.StartTimer()
				driver.Queues[queueInflate].Do(request)
			}
		})
	}
}
