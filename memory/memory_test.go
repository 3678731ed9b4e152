package memory

import (
	"bytes"
	"errors"
	"math"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func newGuest(t testing.TB, size uint64) *Guest {
	t.Helper()
	g, err := New(Options{Size: size, Name: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func TestLayoutRAM(t *testing.T) {
	const gib = 1 << 30
	tests := []struct {
		size uint64
		want []Range // nil: an error
	}{
		{0, nil},
		{MinSize - PageSize, nil},
		{MinSize, []Range{{0, MinSize}}},
		{MinSize + 1, nil},
		{3 * gib, []Range{{0, 3 * gib}}},
		{3*gib + PageSize, []Range{{0, 3 * gib}, {HighStart, PageSize}}},
		{5 * gib, []Range{{0, 3 * gib}, {HighStart, 2 * gib}}},
		{MaxSize + PageSize, nil},
		{math.MaxUint64 &^ (PageSize - 1), nil},
	}
	for _, tt := range tests {
		got, err := LayoutRAM(tt.size)
		if (err != nil) != (tt.want == nil) {
			t.Errorf("LayoutRAM(%#x): error %v", tt.size, err)
			continue
		}
		if len(got) != len(tt.want) {
			t.Errorf("LayoutRAM(%#x) = %v, want %v", tt.size, got, tt.want)
			continue
		}
		for i := range got {
			if got[i] != tt.want[i] {
				t.Errorf("LayoutRAM(%#x) = %v, want %v", tt.size, got, tt.want)
			}
		}
	}
}

func TestPCI64Start(t *testing.T) {
	for size, want := range map[uint64]GPA{
		1 << 20:          4 << 30,
		5 << 30:          6 << 30,
		5<<30 + PageSize: 7 << 30,
	} {
		ram, err := LayoutRAM(size)
		if err != nil {
			t.Fatal(err)
		}
		if got := PCI64Start(ram); got != want {
			t.Errorf("PCI64Start of %#x bytes = %#x, want %#x", size, got, want)
		}
	}
}

// TestBounds tries every access at the edges of a guest with a hole, and with
// numbers that would overflow a careless check.
func TestBounds(t *testing.T) {
	const high = 2 * PageSize
	g := newGuest(t, uint64(PCIHoleStart)+high)
	end := HighStart + high
	tests := []struct {
		gpa GPA
		n   uint64
		ok  bool
	}{
		{0, 0, true},
		{0, 1, true},
		{0, uint64(PCIHoleStart), true},
		{0, uint64(PCIHoleStart) + 1, false},
		{PCIHoleStart - 4, 4, true},
		{PCIHoleStart - 4, 5, false},
		{PCIHoleStart, 1, false},
		{HighStart - 1, 1, false},
		{HighStart - 1, 2, false},
		{HighStart, high, true},
		{end - 1, 1, true},
		{end, 0, true},
		{end, 1, false},
		{end + 1, 0, false},
		{math.MaxUint64, 1, false},
		{math.MaxUint64, math.MaxUint64, false},
		{HighStart, math.MaxUint64, false},
		{1, math.MaxUint64, false},
	}
	for _, tt := range tests {
		v, err := g.View(tt.gpa, tt.n)
		if (err == nil) != tt.ok || g.Contains(tt.gpa, tt.n) != tt.ok {
			t.Errorf("View(%#x, %#x): error %v, want ok %v", uint64(tt.gpa), tt.n, err, tt.ok)
		}
		if err != nil && !errors.Is(err, ErrOutside) {
			t.Errorf("View(%#x, %#x): %v does not wrap ErrOutside", uint64(tt.gpa), tt.n, err)
		}
		if err == nil && (uint64(len(v)) != tt.n || uint64(cap(v)) != tt.n) {
			t.Errorf("View(%#x, %#x) has len %d cap %d", uint64(tt.gpa), tt.n, len(v), cap(v))
		}
		g.MarkDirty(tt.gpa, tt.n) // must not panic
	}
}

func TestReadWrite(t *testing.T) {
	g := newGuest(t, 1<<20)
	if err := g.PutUint64(0x1001, 0x1122334455667788); err != nil {
		t.Fatal(err)
	}
	if x, _ := g.Uint64(0x1001); x != 0x1122334455667788 {
		t.Errorf("Uint64 = %#x", x)
	}
	if x, _ := g.Uint32(0x1001); x != 0x55667788 {
		t.Errorf("Uint32 = %#x", x)
	}
	if x, _ := g.Uint16(0x1007); x != 0x1122 {
		t.Errorf("Uint16 = %#x", x)
	}
	if err := g.PutUint16(0xfffff, 1); !errors.Is(err, ErrOutside) {
		t.Errorf("write across the end of RAM: %v", err)
	}
	p := []byte("some bytes")
	if err := g.Write(0x2ffa, p); err != nil {
		t.Fatal(err)
	}
	q := make([]byte, len(p))
	if err := g.Read(0x2ffa, q); err != nil || !bytes.Equal(p, q) {
		t.Errorf("read back %q, %v", q, err)
	}
}

func TestAtomics(t *testing.T) {
	g := newGuest(t, 1<<20)
	if err := g.StoreUint32(0x1004, 0xdeadbeef); err != nil {
		t.Fatal(err)
	}
	if x, err := g.LoadUint32(0x1004); x != 0xdeadbeef || err != nil {
		t.Errorf("LoadUint32 = %#x, %v", x, err)
	}
	if _, err := g.LoadUint32(0x1002); err == nil {
		t.Error("an atomic load that is not aligned succeeded")
	}
	if err := g.StoreUint32(0x100000, 1); !errors.Is(err, ErrOutside) {
		t.Errorf("an atomic store behind RAM: %v", err)
	}
}

// TestDirty checks that pages are numbered by memfd offset, above the hole too.
func TestDirty(t *testing.T) {
	g := newGuest(t, uint64(PCIHoleStart)+4*PageSize)
	highFirst := uint64(PCIHoleStart) / PageSize
	if err := g.Write(HighStart+PageSize-1, []byte{1, 2}); err != nil {
		t.Fatal(err)
	}
	if err := g.PutUint32(0x5000, 1); err != nil {
		t.Fatal(err)
	}
	for page, want := range map[uint64]bool{4: false, 5: true, 6: false, highFirst: true, highFirst + 1: true, highFirst + 2: false} {
		if g.Dirty().Test(page) != want {
			t.Errorf("page %d dirty: %v, want %v", page, !want, want)
		}
	}
	dst := make([]uint64, (g.Dirty().Pages()+63)/64)
	g.Dirty().Drain(dst)
	if g.Dirty().Count() != 0 {
		t.Error("bits left after Drain")
	}
	if dst[0] != 1<<5 || dst[highFirst/64] != 3<<(highFirst%64) {
		t.Errorf("drained %#x and %#x", dst[0], dst[highFirst/64])
	}
}

func TestBitmapSet(t *testing.T) {
	for _, tt := range []struct{ first, n, count uint64 }{
		{0, 1, 1}, {63, 2, 2}, {0, 200, 200}, {10, 128, 128}, {199, 1, 1},
		{199, 100, 1}, {200, 1, 0}, {math.MaxUint64, math.MaxUint64, 0}, {5, 0, 0}, {1, math.MaxUint64, 199},
	} {
		b := NewBitmap(200)
		b.Set(tt.first, tt.n)
		if b.Count() != tt.count {
			t.Errorf("Set(%d, %d): %d bits, want %d", tt.first, tt.n, b.Count(), tt.count)
		}
	}
}

// TestBitmapConcurrent checks that no bit is lost between setters and a drain.
func TestBitmapConcurrent(t *testing.T) {
	const pages = 4096
	b := NewBitmap(pages)
	got := make([]uint64, pages/64)
	var setters sync.WaitGroup
	for s := range 4 {
		setters.Go(func() {
			for p := uint64(s); p < pages; p += 4 {
				b.Set(p, 1)
			}
		})
	}
	done := make(chan struct{})
	go func() { setters.Wait(); close(done) }()
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		b.Drain(got)
	}
	for i, w := range got {
		if w != math.MaxUint64 {
			t.Fatalf("word %d is %#x: bits were lost", i, w)
		}
	}
}

// TestUntouched checks that a big guest costs nothing until it is used.
func TestUntouched(t *testing.T) {
	g := newGuest(t, 64<<30)
	var st unix.Stat_t
	if err := unix.Fstat(g.FD(), &st); err != nil {
		t.Fatal(err)
	}
	if st.Blocks != 0 {
		t.Errorf("a new guest takes %d blocks", st.Blocks)
	}
	if err := g.PutUint32(HighStart+32<<30, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fstat(g.FD(), &st); err != nil {
		t.Fatal(err)
	}
	// One page, or a huge one where the host gives those.
	if st.Blocks == 0 || st.Blocks*512 > hugePageSize {
		t.Errorf("one touched page takes %d blocks", st.Blocks)
	}
}

func TestSealed(t *testing.T) {
	g := newGuest(t, 1<<20)
	if err := unix.Ftruncate(g.FD(), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncate of guest memory: %v, want EPERM", err)
	}
}

func TestHugePages(t *testing.T) {
	if _, err := New(Options{Size: 3 << 20, HugePages: true}); err == nil {
		t.Error("3 MiB of huge pages succeeded")
	}
	g, err := New(Options{Size: 4 << 20, HugePages: true})
	if err != nil {
		free, _ := os.ReadFile("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
		t.Skipf("the host has no two free huge pages (%s): %v", bytes.TrimSpace(free), err)
	}
	if err := g.PutUint32(0x200000, 7); err != nil {
		t.Error(err)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
}

func BenchmarkWrite(b *testing.B) {
	g := newGuest(b, 1<<20)
	p := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		if err := g.Write(0x3000, p); err != nil {
			b.Fatal(err)
		}
	}
}
