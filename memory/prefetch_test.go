package memory

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestTouched has pages read and written, and another guest prefetch the same ones.
func TestTouched(t *testing.T) {
	const size = 1 << 20
	f := savedFile(t, size, 1, 2, 3, 100, 200)
	saved := Options{Size: size, Saved: []Extent{{0, size, f}}}
	g, err := New(saved)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if runs, err := g.Touched(); err != nil || len(runs) != 0 {
		t.Errorf("at first %v, %v", runs, err)
	}
	for _, page := range []uint64{2, 3, 50} {
		if err := g.PutUint16(GPA(page*PageSize), 77); err != nil {
			t.Fatal(err)
		}
	}
	first(t, g, 100)
	runs, err := g.Touched()
	if err != nil {
		t.Fatal(err)
	}
	var written, read []uint64
	for i, r := range runs {
		if i > 0 && r.Offset < runs[i-1].Offset+runs[i-1].Length {
			t.Errorf("runs %v are not in order", runs)
		}
		for at := r.Offset; at < r.Offset+r.Length; at += PageSize {
			if r.Written {
				written = append(written, at/PageSize)
			} else {
				read = append(read, at/PageSize)
			}
		}
	}
	// Pages near to one that was read may be mapped with it.
	if !slices.Equal(written, []uint64{2, 3, 50}) || !slices.Contains(read, 100) {
		t.Errorf("written %v, read %v", written, read)
	}

	other, err := New(saved)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Prefetch(runs, nil); err != nil {
		t.Fatal(err)
	}
	again, err := other.Touched()
	if err != nil {
		t.Fatal(err)
	}
	if got := writtenOf(again); !slices.Equal(got, writtenOf(runs)) {
		t.Errorf("prefetched for writing %v, want %v", got, writtenOf(runs))
	}
	for page, want := range map[uint64]byte{2: 2, 3: 3, 50: 0, 100: 100} {
		if got := first(t, other, page); got != want {
			t.Errorf("page %d begins with %d after it was prefetched, want %d", page, got, want)
		}
	}
}

func writtenOf(runs []Touched) (written []Touched) {
	for _, r := range runs {
		if r.Written {
			written = append(written, r)
		}
	}
	return written
}

func TestPrefetchStops(t *testing.T) {
	const size = 8 << 20
	g, err := New(Options{Size: size, Saved: []Extent{{0, size, savedFile(t, size, 1)}}})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	asked := 0
	err = g.Prefetch([]Touched{{Span{0, size}, true}}, func() bool { asked++; return asked < 2 })
	if err != nil || asked != 2 {
		t.Errorf("asked %d times: %v", asked, err)
	}
	runs, err := g.Touched()
	if want := []Touched{{Span{0, prefetchAtOnce}, true}}; err != nil || !slices.Equal(runs, want) {
		t.Errorf("%v, %v, want %v", runs, err, want)
	}
	for _, r := range []Span{{size, PageSize}, {^uint64(0) &^ (PageSize - 1), 2 * PageSize}, {0, size + PageSize}, {1, PageSize}, {0, 7}} {
		if err := g.Prefetch([]Touched{{r, false}}, nil); err == nil {
			t.Errorf("%v was prefetched", r)
		}
	}
	if _, err := newGuest(t, size).Touched(); !errors.Is(err, ErrNotPrivate) {
		t.Errorf("what was used of other memory: %v", err)
	}
}

// BenchmarkTouch writes to 64 MiB of restored memory, cold, or with the time that it takes
// to prefetch it: touch-ms is the part of the time that a guest would wait.
func BenchmarkTouch(b *testing.B) {
	const size = 64 << 20
	f, err := os.Create(filepath.Join(b.TempDir(), "memory"))
	if err == nil {
		_, err = f.Write(bytes.Repeat([]byte{1}, size))
	}
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for _, test := range []struct {
		name string
		runs []Touched
	}{{"cold", nil}, {"prefetched", []Touched{{Span{0, size}, true}}}} {
		b.Run(test.name, func(b *testing.B) {
			b.SetBytes(size)
			var touch time.Duration
			for b.Loop() {
				g, err := New(Options{Size: size, Saved: []Extent{{0, size, f}}})
				if err != nil {
					b.Fatal(err)
				}
				if err := g.Prefetch(test.runs, nil); err != nil {
					b.Fatal(err)
				}
				began := time.Now()
				for mem, at := g.Regions()[0].Mem, 0; at < size; at += PageSize {
					mem[at]++
				}
				touch += time.Since(began)
				if err := g.Close(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(touch.Microseconds())/1000/float64(b.N), "touch-ms")
		})
	}
}
