package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

// ram is a small guest memory in two ranges, whose size is not a multiple of the
// chunk size.
var ram = []memory.Range{
	{Start: 0, Size: 300 * PageSize},
	{Start: memory.HighStart, Size: 101 * PageSize},
}

const ramSize = 401 * PageSize

// sections are the state of the tests' snapshots.
var sections = []Section{
	{"machine", []byte(`{"version":1}`)},
	{"empty", nil},
	{"vcpu0", bytes.Repeat([]byte{7, 0, 3}, 1000)},
}

func testManifest() Manifest {
	return Manifest{
		Created: time.Date(2025, 11, 22, 13, 0, 0, 0, time.UTC), Godwit: "test", Name: "guest", CPUs: 1,
		CPUFeatures: []string{"sse4_2", "avx2"},
		Devices:     []Device{{ID: "rng0", Type: "virtio-rng", Section: "rng0"}},
		Disks:       []Disk{{ID: "disk0", Path: "/x/disk.img", Size: 1 << 20, Identity: "1:2"}},
	}
}

// content makes memory where about half of the pages are zero, in runs.
func content(seed uint64, size int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	source := rand.NewChaCha8(key)
	r := rand.New(source)
	p := make([]byte, size)
	for i := 0; i < size; {
		n := min((1+r.IntN(20))*PageSize, size-i)
		if r.IntN(2) == 0 {
			_, _ = source.Read(p[i : i+n]) // never fails
		}
		i += n
	}
	return p
}

func begin(t testing.TB, dir string, o Options) *Writer {
	t.Helper()
	if o.Memory == nil {
		o.Memory = ram
	}
	w, err := Create(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Abort(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func writePages(t testing.TB, w *Writer, offset int64, p []byte) {
	t.Helper()
	if err := w.WritePages(offset, p); err != nil {
		t.Fatal(err)
	}
}

func commit(t testing.TB, w *Writer) {
	t.Helper()
	if err := w.Commit(testManifest(), sections); err != nil {
		t.Fatal(err)
	}
}

func mustOpen(t testing.TB, dir string) *Snapshot {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// full makes a snapshot of p.
func full(t testing.TB, dir string, p []byte) {
	t.Helper()
	w := begin(t, dir, Options{})
	writePages(t, w, 0, p)
	commit(t, w)
}

// only fails the test if there is anything else than names in dir.
func only(t testing.TB, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		found = append(found, e.Name())
	}
	if strings.Join(found, " ") != strings.Join(names, " ") {
		t.Errorf("in %s: %q, want %q", dir, found, names)
	}
}

func TestRoundTrip(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "snap")
	want := content(1, ramSize)
	w := begin(t, dir, Options{})
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is there before Commit: %v", err)
	}
	writePages(t, w, 0, content(2, ramSize)) // overwritten below
	var group sync.WaitGroup
	for offset := 0; offset < len(want); offset += 64 * PageSize {
		group.Go(func() {
			if err := w.WritePages(int64(offset), want[offset:min(offset+64*PageSize, len(want))]); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	commit(t, w)
	only(t, parent, "snap")
	only(t, dir, "manifest.json", "memory", "memory.sums", "state")

	s := mustOpen(t, dir)
	found, err := os.ReadFile(filepath.Join(dir, MemoryFile))
	if err != nil || !bytes.Equal(found, want) {
		t.Errorf("memory differs (%v)", err)
	}
	for _, section := range sections {
		if p, ok := s.Section(section.Name); !ok || !bytes.Equal(p, section.Data) {
			t.Errorf("section %s: %v %x", section.Name, ok, p)
		}
	}
	if _, ok := s.Section("other"); ok {
		t.Error("a section that was not written")
	}
	m := s.Manifest()
	if m.ID != w.ID() || m.Kind != Full || m.Godwit != "test" || !m.Memory.equal(layout(ram)) {
		t.Errorf("manifest %+v", m)
	}
	if s.Pages() != nil {
		t.Error("a full snapshot has pages")
	}
	if err := w.WritePages(0, want[:PageSize]); !errors.Is(err, os.ErrClosed) {
		t.Errorf("WritePages after Commit: %v", err)
	}
	if err := w.Commit(testManifest(), nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Commit after Commit: %v", err)
	}
}

// blocks is how many bytes of the disk a file takes.
func blocks(t testing.TB, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestHoles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "snap")
	w := begin(t, dir, Options{})
	writePages(t, w, 0, bytes.Repeat([]byte{1}, ramSize))
	writePages(t, w, 0, make([]byte, ramSize))
	writePages(t, w, 50*PageSize, bytes.Repeat([]byte{2}, 2*PageSize))
	commit(t, w)
	if n := blocks(t, filepath.Join(dir, MemoryFile)); n > 4*PageSize {
		t.Errorf("the memory file takes %d bytes for two pages", n)
	}
}

func TestCreateRefuses(t *testing.T) {
	parent := t.TempDir()
	there := filepath.Join(parent, "there")
	if err := os.Mkdir(there, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(parent, "link")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		dir  string
		o    Options
		says string
	}{
		{there, Options{Memory: ram}, "exists"},
		{filepath.Join(parent, "link"), Options{Memory: ram}, "exists"},
		{filepath.Join(parent, "a/b"), Options{Memory: ram}, "make the directory"},
		{filepath.Join(parent, "x"), Options{}, "ranges"},
		{filepath.Join(parent, "x"), Options{Memory: []memory.Range{{Start: 1, Size: PageSize}}}, "whole pages"},
		{filepath.Join(parent, "x"), Options{Memory: []memory.Range{{Start: 0, Size: 2 * PageSize}, {Start: PageSize, Size: PageSize}}}, "rising"},
		{filepath.Join(parent, "x"), Options{Memory: ram, Base: filepath.Join(parent, "no")}, "base"},
		{filepath.Join(parent, strings.Repeat("x", 250)), Options{Memory: ram}, "too long"},
	} {
		w, err := Create(test.dir, test.o)
		if err == nil {
			w.Abort()
		}
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("Create(%s): %v, want an error that says %q", test.dir, err, test.says)
		}
	}
	only(t, parent, "link", "there")
}

func TestWritePagesRefuses(t *testing.T) {
	w := begin(t, filepath.Join(t.TempDir(), "snap"), Options{})
	for _, test := range []struct {
		offset int64
		n      int
	}{{-PageSize, PageSize}, {1, PageSize}, {0, 1}, {ramSize, PageSize}, {ramSize - PageSize, 2 * PageSize}, {1 << 62, PageSize}} {
		if err := w.WritePages(test.offset, make([]byte, test.n)); err == nil {
			t.Errorf("WritePages(%d, %d bytes) worked", test.offset, test.n)
		}
	}
	commit(t, w) // a refusal is not a failure of the writer
}

func TestAbort(t *testing.T) {
	parent := t.TempDir()
	w := begin(t, filepath.Join(parent, "snap"), Options{})
	writePages(t, w, 0, content(1, ramSize))
	for range 2 {
		if err := w.Abort(); err != nil {
			t.Error(err)
		}
	}
	only(t, parent)
	if err := w.Commit(testManifest(), nil); err == nil {
		t.Error("Commit after Abort worked")
	}
}

// TestCommitTaken has somebody else take the place while a snapshot is made.
func TestCommitTaken(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "snap")
	w := begin(t, dir, Options{})
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(testManifest(), nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Commit onto a directory: %v", err)
	}
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	only(t, parent, "snap")
	only(t, dir)
}

func TestCommitRefuses(t *testing.T) {
	many := make([]Section, MaxSections+1)
	for i := range many {
		many[i].Name = string(rune('a' + i))
	}
	for _, test := range []struct {
		name     string
		change   func(*Manifest)
		sections []Section
	}{
		{"many sections", nil, many},
		{"same name", nil, []Section{{Name: "a"}, {Name: "a"}}},
		{"no name", nil, []Section{{}}},
		{"long name", nil, []Section{{Name: strings.Repeat("x", MaxNameLength+1)}}},
		{"large section", nil, []Section{{"a", make([]byte, MaxSectionSize+1)}}},
		{"long list", func(m *Manifest) { m.CPUFeatures = make([]string, maxList+1) }, nil},
		{"long string", func(m *Manifest) { m.Name = strings.Repeat("x", maxString+1) }, nil},
		{"disk outside", func(m *Manifest) { m.Disks[0].File = "../x" }, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			parent := t.TempDir()
			w := begin(t, filepath.Join(parent, "snap"), Options{})
			m := testManifest()
			if test.change != nil {
				test.change(&m)
			}
			if err := w.Commit(m, test.sections); err == nil {
				t.Error("Commit worked")
			}
			if err := w.Abort(); err != nil {
				t.Error(err)
			}
			only(t, parent)
		})
	}
}

func TestExtraFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "snap")
	w := begin(t, dir, Options{})
	f, err := w.CreateFile("disk-0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("disk"); err != nil {
		t.Fatal(err)
	}
	commit(t, w)
	only(t, dir, "disk-0", "manifest.json", "memory", "memory.sums", "state")
	w = begin(t, filepath.Join(t.TempDir(), "snap"), Options{})
	for _, name := range []string{"", "..", "a/b", "memory"} {
		if _, err := w.CreateFile(name); err == nil {
			t.Errorf("CreateFile(%q) worked", name)
		}
	}
}

// TestSummer compares the checksums of chunks that are made from those of pages
// with those of the bytes.
func TestSummer(t *testing.T) {
	p := content(3, ramSize)
	s := newSummer()
	var pages []uint32
	for i := 0; i < len(p); i += PageSize {
		pages = append(pages, checksum(p[i:i+PageSize])^s.zero)
	}
	entries := s.chunks(pages)
	for i := 0; i < len(p); i += ChunkSize {
		want := checksum(p[i:min(i+ChunkSize, len(p))])
		k := i / ChunkSize * 4
		if got := uint32(entries[k]) | uint32(entries[k+1])<<8 | uint32(entries[k+2])<<16 | uint32(entries[k+3])<<24; got != want {
			t.Errorf("chunk at %#x: %#08x, want %#08x", i, got, want)
		}
	}
}

func TestWritePagesAllocations(t *testing.T) {
	w := begin(t, filepath.Join(t.TempDir(), "snap"), Options{})
	p := content(4, ramSize)
	if n := testing.AllocsPerRun(20, func() {
		if err := w.WritePages(0, p); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("WritePages allocates %v times", n)
	}
}
