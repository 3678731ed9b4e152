package snapshot

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// resealState writes right checksums into what may be a state, so that the fuzzer
// gets past them.
func resealState(p []byte) []byte {
	p = bytes.Clone(p)
	if len(p) < headerSize {
		return p
	}
	count := min(int(binary.LittleEndian.Uint32(p[12:])), MaxSections, (len(p)-headerSize)/entrySize)
	body := headerSize + count*entrySize
	rest := p[body:]
	for i := range count {
		entry := p[headerSize+i*entrySize:][:entrySize]
		n := min(binary.LittleEndian.Uint64(entry[48:]), uint64(len(rest)))
		binary.LittleEndian.PutUint32(entry[60:], checksum(rest[:n]))
		rest = rest[n:]
	}
	binary.LittleEndian.PutUint64(p[40:], uint64(len(p)))
	sealHeader(p[:headerSize], p[headerSize:body])
	return p
}

// FuzzState decodes states. What is one is encoded to the same bytes.
func FuzzState(f *testing.F) {
	good, err := os.ReadFile("testdata/v1.0/full/state")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, false)
	f.Add(good[:headerSize+3*entrySize], true)
	f.Fuzz(func(t *testing.T, p []byte, reseal bool) {
		if reseal {
			p = resealState(p)
		}
		s, err := decodeState(p)
		if err != nil {
			return
		}
		if !bytes.Equal(encodeState(t, s.seal, s.sections), p) {
			t.Errorf("state %x becomes %x", p, encodeState(t, s.seal, s.sections))
		}
	})
}

// FuzzOpen opens, verifies and merges small directories.
func FuzzOpen(f *testing.F) {
	for _, name := range []string{"full", "diff"} {
		var files [][]byte
		for _, file := range []string{StateFile, ManifestFile, SumsFile, PagesFile, MemoryFile} {
			p, err := os.ReadFile(filepath.Join("testdata/v1.0", name, file))
			if err != nil && file != PagesFile {
				f.Fatal(err)
			}
			files = append(files, p)
		}
		f.Add(files[0], files[1], files[2], files[3], files[4], true)
		f.Add(files[0], files[1], files[2], files[3], files[4][:PageSize], false)
	}
	base, err := filepath.Abs("testdata/v1.0/full")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, state, manifest, sums, pages, mem []byte, reseal bool) {
		if reseal {
			state, sums, pages = bytes.Clone(state), resealTable(sums), resealTable(pages)
			if len(state) >= headerSize {
				binary.LittleEndian.PutUint32(state[32:], uint32(len(manifest)))
				binary.LittleEndian.PutUint32(state[36:], checksum(manifest))
			}
			state = resealState(state)
		}
		parent := t.TempDir()
		if err := os.Symlink(base, filepath.Join(parent, "full")); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(parent, "snap")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, p := range map[string][]byte{StateFile: state, ManifestFile: manifest, SumsFile: sums, PagesFile: pages, MemoryFile: mem} {
			if err := os.WriteFile(filepath.Join(dir, name), p, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := OpenChain(dir)
		if err != nil {
			return
		}
		defer c.Close()
		var end int64
		for _, e := range c.Extents() {
			if e.Offset != end || e.Length <= 0 {
				t.Fatalf("extents %+v", c.Extents())
			}
			end += e.Length
		}
		if end != int64(len(mem)) {
			t.Errorf("extents end at %#x of %#x bytes", end, len(mem))
		}
		damaged := c.Verify(context.Background(), nil)
		merged := Merge(context.Background(), dir, filepath.Join(parent, "out"), nil)
		if damaged == nil && merged != nil {
			t.Errorf("Merge of a good snapshot: %v", merged)
		}
		if merged == nil {
			if err := Verify(context.Background(), filepath.Join(parent, "out"), nil); err != nil {
				t.Errorf("after Merge: %v", err)
			}
		}
	})
}

// resealTable writes right checksums into a copy of what may be a table.
func resealTable(p []byte) []byte {
	p = bytes.Clone(p)
	if len(p) >= headerSize {
		binary.LittleEndian.PutUint32(p[56:], checksum(p[headerSize:]))
		sealHeader(p[:headerSize])
	}
	return p
}
