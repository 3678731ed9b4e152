package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

func touched(offset, length uint64, written bool) memory.Touched {
	return memory.Touched{Span: memory.Span{Offset: offset, Length: length}, Written: written}
}

// TestWorkingSet notes a working set in a snapshot, which stays as good as it was.
func TestWorkingSet(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "snap")
	full(t, dir, content(1, ramSize))
	s := mustOpen(t, dir)
	if _, err := s.WorkingSet(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before there is one: %v", err)
	}
	want := []memory.Touched{touched(0, 2*PageSize, true), touched(2*PageSize, PageSize, false), touched(ramSize-PageSize, PageSize, true)}
	p, err := EncodeWorkingSet(s.Manifest(), want)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, WorkingSetFile)
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := s.WorkingSet(); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if err := Verify(t.Context(), dir, nil); err != nil {
		t.Error(err)
	}
	// What is merged has none: it may be somebody else's.
	merged := filepath.Join(parent, "merged")
	if err := Merge(t.Context(), dir, merged, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := mustOpen(t, merged).WorkingSet(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a merged snapshot: %v", err)
	}
	// That of another snapshot is refused, and no file that could be waited for is read.
	other := filepath.Join(parent, "other")
	full(t, other, content(2, ramSize))
	if err := os.WriteFile(filepath.Join(other, WorkingSetFile), p, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := mustOpen(t, other).WorkingSet(); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "belongs to") {
		t.Errorf("of another snapshot: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.WorkingSet(); err == nil {
		t.Error("a pipe is read")
	}
}

// TestWorkingSetMany has more runs than there may be.
func TestWorkingSetMany(t *testing.T) {
	const pages = 8 * MaxWorkingSet
	m := testManifest()
	m.ID, m.Memory.Size = id{1}.String(), pages*PageSize
	var runs []memory.Touched
	for page := uint64(0); page < pages; page += 2 {
		runs = append(runs, touched(page*PageSize, PageSize, page%4 == 0))
	}
	p, err := EncodeWorkingSet(&m, runs)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeWorkingSet(p, &m)
	if err != nil || len(got) == 0 || len(got) > MaxWorkingSet {
		t.Fatalf("%d runs of %d: %v", len(got), len(runs), err)
	}
	i := 0
	for _, r := range runs {
		for i < len(got) && got[i].Offset+got[i].Length < r.Offset+r.Length {
			i++
		}
		if i == len(got) || got[i].Offset > r.Offset || got[i].Written && !r.Written {
			t.Fatalf("%+v is not in what is left", r)
		}
	}
}

func TestWorkingSetRefused(t *testing.T) {
	m := testManifest()
	m.ID, m.Memory.Size = id{1}.String(), 16*PageSize
	good, err := EncodeWorkingSet(&m, []memory.Touched{touched(0, PageSize, true), touched(PageSize, PageSize, false)})
	if err != nil {
		t.Fatal(err)
	}
	entry := func(i, at int, v uint64) func(p []byte) {
		return func(p []byte) { binary.LittleEndian.PutUint64(p[headerSize+i*workingSetEntry+at:], v) }
	}
	for _, test := range []struct {
		name   string
		change func(p []byte)
	}{
		{"not in order", entry(1, 0, 0)},
		{"overlap", entry(0, 8, 2*PageSize)},
		{"beyond the end", entry(1, 8, 16*PageSize)},
		{"far away", entry(1, 0, 1<<63)},
		{"overflow", entry(1, 8, ^uint64(0)&^(PageSize-1))},
		{"empty", entry(0, 8, 0)},
		{"half a page", entry(0, 8, PageSize/2)},
		{"unknown mark", entry(0, 0, 2)},
		{"count", func(p []byte) { binary.LittleEndian.PutUint32(p[workingSetCount:], 1<<31) }},
		{"memory", func(p []byte) { p[workingSetMemory+2]++ }},
		{"snapshot", func(p []byte) { p[headerID]++ }},
		{"version", func(p []byte) { p[headerVersion]++ }},
		{"magic", func(p []byte) { p[0]++ }},
	} {
		p := bytes.Clone(good)
		test.change(p)
		if _, err := decodeWorkingSet(resealWorkingSet(p), &m); err == nil {
			t.Errorf("%s: taken", test.name)
		}
	}
	for n := range good {
		if _, err := decodeWorkingSet(good[:n], &m); err == nil {
			t.Errorf("cut at %d: taken", n)
		}
		torn := bytes.Clone(good)
		torn[n] ^= 1
		if _, err := decodeWorkingSet(torn, &m); err == nil {
			t.Errorf("changed at %d: taken", n)
		}
	}
	if _, err := EncodeWorkingSet(&m, []memory.Touched{touched(16*PageSize, PageSize, false)}); err == nil {
		t.Error("pages that the guest does not have are noted")
	}
}

// resealWorkingSet writes right checksums into what may be a working set.
func resealWorkingSet(p []byte) []byte {
	if len(p) < headerSize {
		return p
	}
	p = bytes.Clone(p)
	binary.LittleEndian.PutUint32(p[workingSetSum:], checksum(p[headerSize:]))
	sealHeader(p[:headerSize])
	return p
}

// FuzzWorkingSet decodes working sets. What is one is encoded to the same bytes.
func FuzzWorkingSet(f *testing.F) {
	m := testManifest()
	m.ID, m.Memory.Size = id{1}.String(), 16*PageSize
	good, err := EncodeWorkingSet(&m, []memory.Touched{touched(0, PageSize, true), touched(PageSize, PageSize, false)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:headerSize])
	f.Fuzz(func(t *testing.T, p []byte) {
		p = resealWorkingSet(p)
		runs, err := decodeWorkingSet(p, &m)
		if err != nil {
			return
		}
		again, err := EncodeWorkingSet(&m, runs)
		if err != nil || !bytes.Equal(again, p) {
			t.Errorf("%x becomes %x: %v", p, again, err)
		}
	})
}
