package memory

import (
	"bytes"
	"errors"
	"math"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// resident is how much memory the host spends on a guest.
func resident(t testing.TB, g *Guest) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(g.FD(), &st); err != nil {
		t.Fatal(err)
	}
	return uint64(st.Blocks) * 512
}

// fill touches every page of RAM.
func fill(t testing.TB, g *Guest) {
	t.Helper()
	for _, r := range g.Regions() {
		for off := 0; off < len(r.Mem); off += PageSize {
			r.Mem[off] = 0xa5
		}
	}
}

func TestDiscard(t *testing.T) {
	const size = 1 << 20
	tests := []struct {
		name  string
		gpa   GPA
		n     uint64
		freed uint64
	}{
		{"one page", 0x3000, PageSize, PageSize},
		{"a run", 0x10000, 64 << 10, 64 << 10},
		{"nothing", 0x3000, 0, 0},
		{"less than a page", 0x3000, PageSize - 1, 0},
		{"two halves of pages", 0x3800, PageSize, 0},
		{"a page and its surroundings", 0x3fff, PageSize + 2, PageSize},
		{"all", 0, size, size},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest(t, size)
			fill(t, g)
			freed, err := g.Discard(tt.gpa, tt.n)
			if err != nil || freed != tt.freed {
				t.Fatalf("Discard = %d, %v, want %d", freed, err, tt.freed)
			}
			if got := resident(t, g); got != size-tt.freed {
				t.Errorf("%d bytes are resident, want %d", got, size-tt.freed)
			}
			if got := g.Dirty().Count(); got != tt.freed/PageSize {
				t.Errorf("%d pages are dirty, want %d", got, tt.freed/PageSize)
			}
			for page := GPA(0); page < size; page += PageSize {
				want := byte(0xa5)
				if tt.freed > 0 && page >= tt.gpa && page+PageSize <= tt.gpa+GPA(tt.n) {
					want = 0
				}
				v, err := g.View(page, 1)
				if err != nil || v[0] != want {
					t.Fatalf("page %#x has %#x (%v), want %#x", uint64(page), v[0], err, want)
				}
			}
		})
	}
}

// TestDiscardAboveTheHole uses the second region, whose offset in the memfd is
// not its address.
func TestDiscardAboveTheHole(t *testing.T) {
	g := newGuest(t, uint64(PCIHoleStart)+1<<20)
	for _, gpa := range []GPA{0, PCIHoleStart - PageSize, HighStart, HighStart + 0x5000} {
		if err := g.PutUint32(gpa, 7); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.Discard(HighStart, PageSize); err != nil {
		t.Fatal(err)
	}
	for gpa, want := range map[GPA]uint32{0: 7, PCIHoleStart - PageSize: 7, HighStart: 0, HighStart + 0x5000: 7} {
		if x, err := g.Uint32(gpa); err != nil || x != want {
			t.Errorf("%#x has %d (%v), want %d", uint64(gpa), x, err, want)
		}
	}
}

func TestDiscardOutside(t *testing.T) {
	g := newGuest(t, 1<<20)
	fill(t, g)
	for _, r := range []struct {
		gpa GPA
		n   uint64
	}{
		{1 << 20, PageSize},
		{1<<20 - PageSize, 2 * PageSize},
		{PCIHoleStart, PageSize},
		{math.MaxUint64 - PageSize + 1, PageSize},
		{PageSize, math.MaxUint64},
		{0, math.MaxUint64 - PageSize + 2},
	} {
		if n, err := g.Discard(r.gpa, r.n); n != 0 || !errors.Is(err, ErrOutside) {
			t.Errorf("Discard(%#x, %#x) = %d, %v", uint64(r.gpa), r.n, n, err)
		}
		if err := g.Populate(r.gpa, r.n); !errors.Is(err, ErrOutside) {
			t.Errorf("Populate(%#x, %#x): %v", uint64(r.gpa), r.n, err)
		}
	}
	if got := resident(t, g); got != 1<<20 {
		t.Errorf("%d bytes are resident, want all", got)
	}
}

func TestPopulate(t *testing.T) {
	g := newGuest(t, 1<<20)
	if err := g.Populate(0x10000, 0x20000); err != nil {
		t.Fatal(err)
	}
	if got := resident(t, g); got != 0x20000 {
		t.Errorf("%#x bytes are resident, want 0x20000", got)
	}
}

// TestDiscardHugePages frees only huge pages that are covered wholly.
func TestDiscardHugePages(t *testing.T) {
	const size = 8 << 20
	g, err := New(Options{Size: size, HugePages: true})
	if err != nil {
		free, _ := os.ReadFile("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
		t.Skipf("the host has no four free huge pages (%s): %v", bytes.TrimSpace(free), err)
	}
	defer g.Close()
	fill(t, g)
	freed, err := g.Discard(1<<20, 5<<20)
	if err != nil || freed != 4<<20 || resident(t, g) != 4<<20 {
		t.Errorf("Discard = %#x, %v; %#x bytes are resident", freed, err, resident(t, g))
	}
	if err := g.Populate(2<<20, 4<<20); err != nil || resident(t, g) != size {
		t.Errorf("Populate: %v; %#x bytes are resident", err, resident(t, g))
	}
}

// BenchmarkDiscard compares pages one by one with the same pages in one run.
func BenchmarkDiscard(b *testing.B) {
	for _, run := range []uint64{1, 256} {
		name := map[uint64]string{1: "256 runs of 1 page", 256: "1 run of 256 pages"}[run]
		b.Run(name, func(b *testing.B) {
			g := newGuest(b, 1<<20)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				fill(b, g)
				b.StartTimer()
				for page := uint64(0); page < 256; page += run {
					if _, err := g.Discard(GPA(page*PageSize), run*PageSize); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
