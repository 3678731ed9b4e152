package memory

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// savedFile is a file of pages, each of which begins with its number, and holes
// where the number is 0.
func savedFile(t *testing.T, size int64, pages ...int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err == nil {
		err = f.Truncate(size)
	}
	for _, page := range pages {
		if err == nil {
			_, err = f.WriteAt(bytes.Repeat([]byte{byte(page)}, PageSize), page*PageSize)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func present(t *testing.T, g *Guest) []uint64 {
	t.Helper()
	words := make([]uint64, g.Size()/PageSize/64)
	if err := g.Present(words); err != nil {
		t.Fatal(err)
	}
	var pages []uint64
	b := Bitmap{words: words, pages: g.Size() / PageSize}
	for page := range b.pages {
		if b.Test(page) {
			pages = append(pages, page)
		}
	}
	return pages
}

func first(t *testing.T, g *Guest, page uint64) byte {
	t.Helper()
	v, err := g.View(GPA(page*PageSize), 1)
	if err != nil {
		t.Fatal(err)
	}
	return v[0]
}

// TestSaved restores memory from two files of which the later one has the newer pages.
func TestSaved(t *testing.T) {
	const size = 1 << 20
	base, diff := savedFile(t, size, 1, 2, 3), savedFile(t, size, 2, 100)
	extents := []Extent{{0, size, base}, {2 * PageSize, PageSize, diff}, {90 * PageSize, 20 * PageSize, diff}}
	g, err := New(Options{Size: size, Saved: extents})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if got, want := present(t, g), []uint64{1, 2, 3, 100}; !slices.Equal(got, want) {
		t.Errorf("present %v, want %v", got, want)
	}
	for page, want := range map[uint64]byte{0: 0, 1: 1, 2: 2, 3: 3, 100: 100} {
		if got := first(t, g, page); got != want {
			t.Errorf("page %d begins with %d, want %d", page, got, want)
		}
	}
	// What is written is this guest's own.
	for _, page := range []uint64{3, 50} {
		if err := g.PutUint16(GPA(page*PageSize), 77); err != nil {
			t.Fatal(err)
		}
	}
	other, err := New(Options{Size: size, Saved: extents})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if first(t, g, 3) != 77 || first(t, other, 3) != 3 || first(t, other, 50) != 0 {
		t.Error("what one guest writes is seen by another")
	}
	if got, want := present(t, g), []uint64{1, 2, 3, 50, 100}; !slices.Equal(got, want) {
		t.Errorf("present after writes %v, want %v", got, want)
	}
	// Given back to the host it is zero, not what was saved.
	if n, err := g.Discard(PageSize, 2*PageSize); n != 2*PageSize || err != nil {
		t.Fatal(n, err)
	}
	if first(t, g, 1) != 0 || first(t, g, 2) != 0 || first(t, g, 3) != 77 || first(t, other, 1) != 1 {
		t.Error("discarded pages are not zero, or others changed")
	}
	if err := g.Populate(0, size); err != nil {
		t.Error(err)
	}
}

// TestSavedAboveTheHole has extents on both sides of the PCI hole.
func TestSavedAboveTheHole(t *testing.T) {
	const size = uint64(PCIHoleStart) + 1<<20
	last := int64(size/PageSize - 1)
	f := savedFile(t, int64(size), 5, int64(PCIHoleStart)/PageSize+1, last)
	g, err := New(Options{Size: size, Saved: []Extent{{0, size, f}}})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for _, test := range []struct {
		gpa  GPA
		page int64
	}{{5 * PageSize, 5}, {HighStart + PageSize, int64(PCIHoleStart)/PageSize + 1}, {HighStart + 1<<20 - PageSize, last}} {
		v, err := g.View(test.gpa, 1)
		if err != nil || v[0] != byte(test.page) {
			t.Errorf("%#x begins with %d (%v), want that of page %d", uint64(test.gpa), v[0], err, test.page)
		}
	}
}

func TestSavedRefused(t *testing.T) {
	const size = 1 << 20
	f := savedFile(t, size/2, 1)
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, test := range []struct {
		name   string
		extent Extent
		want   string
	}{
		{"file too short", Extent{0, size, f}, "want 1048576 of saved memory"},
		{"behind the memory", Extent{size, PageSize, f}, "not pages of a guest"},
		{"overflow", Extent{^uint64(0) &^ (PageSize - 1), 2 * PageSize, f}, "not pages of a guest"},
		{"half a page", Extent{0, PageSize / 2, f}, "not pages of a guest"},
		{"no file", Extent{0, 0, dir}, "in a regular file"},
	} {
		g, err := New(Options{Size: size, Saved: []Extent{test.extent}})
		if err == nil {
			g.Close()
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}
