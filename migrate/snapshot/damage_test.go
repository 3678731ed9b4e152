package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// flip changes a bit of a file.
func flip(t testing.TB, path string, offset int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << (offset % 8)
	if _, err := f.WriteAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
}

func encodeState(t testing.TB, k seal, sections []Section) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := writeState(&b, k, sections); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestStateBits flips every bit of a state.
func TestStateBits(t *testing.T) {
	p := encodeState(t, seal{id: id{1, 2}, manifestSize: 3, manifestCRC: 4}, sections)
	if _, err := decodeState(p); err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(p) {
		p[bit/8] ^= 1 << (bit % 8)
		if _, err := decodeState(p); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
			t.Fatalf("bit %d of byte %d is flipped: %v", bit%8, bit/8, err)
		}
		p[bit/8] ^= 1 << (bit % 8)
	}
	for n := range len(p) {
		if _, err := decodeState(p[:n]); err == nil {
			t.Fatalf("the first %d of %d bytes are a state", n, len(p))
		}
	}
	if _, err := decodeState(append(p, 0)); err == nil {
		t.Error("a state with a byte behind it is one")
	}
}

// small makes a diff of a few pages with its base, and returns its directory.
func small(t testing.TB) string {
	t.Helper()
	parent := t.TempDir()
	full(t, filepath.Join(parent, "base"), content(1, ramSize))
	dir := filepath.Join(parent, "diff")
	w := begin(t, dir, Options{Base: filepath.Join(parent, "base")})
	writePages(t, w, 70*PageSize, content(6, 9*PageSize))
	if err := w.Commit(testManifest(), sections[:2]); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestEveryByte changes every byte of every small file of a snapshot, and cuts
// each at every length.
func TestEveryByte(t *testing.T) {
	dir := small(t)
	for _, name := range []string{StateFile, ManifestFile, SumsFile, PagesFile} {
		path := filepath.Join(dir, name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		refused := func(what string, p []byte) {
			if err := os.WriteFile(path, p, 0o600); err != nil {
				t.Fatal(err)
			}
			err := Verify(context.Background(), dir, nil)
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
				t.Fatalf("%s %s: %v", name, what, err)
			}
		}
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << (i % 8)
			refused(fmt.Sprintf("with byte %d changed", i), bad)
		}
		for n := range good {
			refused(fmt.Sprintf("cut to %d bytes", n), good[:n])
		}
		refused("with a byte more", append(bytes.Clone(good), 0))
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Verify(context.Background(), dir, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMemoryDamage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "snap")
	for _, test := range []struct {
		name string
		at   int64
		says string
	}{
		{"first byte", 0, "guest address 0x0 (offset 0x0 "},
		{"first range", 70*PageSize + 5, "guest address 0x40000 (offset 0x40000 "},
		{"second range", 330 * PageSize, "guest address 0x100014000 (offset 0x140000 "},
		{"last byte", ramSize - 1, "guest address 0x100054000 (offset 0x180000 "},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			full(t, dir, content(1, ramSize))
			flip(t, filepath.Join(dir, MemoryFile), test.at)
			flip(t, filepath.Join(dir, MemoryFile), ramSize-2) // the first counts
			err := Verify(context.Background(), dir, nil)
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v, want an error that says %q", err, test.says)
			}
		})
	}
	t.Run("hole", func(t *testing.T) {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		full(t, dir, bytes.Repeat([]byte{1}, ramSize))
		path := filepath.Join(dir, MemoryFile)
		if err := errors.Join(os.Truncate(path, ChunkSize), os.Truncate(path, ramSize)); err != nil {
			t.Fatal(err)
		}
		if err := Verify(context.Background(), dir, nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("memory has become a hole: %v", err)
		}
	})
	t.Run("size", func(t *testing.T) {
		for _, size := range []int64{0, ramSize - 1, ramSize + PageSize} {
			if err := os.Truncate(filepath.Join(dir, MemoryFile), size); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(dir); !errors.Is(err, ErrDamaged) {
				t.Errorf("memory file of %d bytes: %v", size, err)
			}
		}
	})
}

// TestMixed puts files of one snapshot into another.
func TestMixed(t *testing.T) {
	parent := t.TempDir()
	a, b := filepath.Join(parent, "a"), filepath.Join(parent, "b")
	for _, name := range []string{StateFile, ManifestFile, SumsFile} {
		for _, dir := range []string{a, b} {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			full(t, dir, content(1, ramSize))
		}
		if err := os.Rename(filepath.Join(a, name), filepath.Join(b, name)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(b); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s of another snapshot: %v", name, err)
		}
	}
}

// TestVersions has snapshots of other versions, with right checksums.
func TestVersions(t *testing.T) {
	defer func(v Version) { current = v }(current)
	for _, test := range []struct {
		version Version
		reads   bool
	}{
		{Version{current.Major, current.Minor}, true},
		{Version{current.Major, current.Minor + 1}, false},
		{Version{current.Major + 1, 0}, false},
		{Version{current.Major - 1, 9}, false},
	} {
		dir := filepath.Join(t.TempDir(), "snap")
		now := current
		current = test.version
		full(t, dir, content(1, ramSize))
		current = now
		s, err := Open(dir)
		if err == nil {
			s.Close()
		}
		switch {
		case test.reads && err != nil:
			t.Errorf("version %v: %v", test.version, err)
		case !test.reads && (!errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), test.version.String()) || !strings.Contains(err.Error(), now.String())):
			t.Errorf("version %v: %v, want an error with both versions", test.version, err)
		}
	}
}

// TestOddFiles puts something else in the place of each file. Nothing may hang.
func TestOddFiles(t *testing.T) {
	for what, put := range map[string]func(path string) error{
		"nothing":         func(string) error { return nil },
		"a FIFO":          func(path string) error { return unix.Mkfifo(path, 0o600) },
		"a directory":     func(path string) error { return os.Mkdir(path, 0o700) },
		"a symbolic link": func(path string) error { return os.Symlink("/dev/zero", path) },
		"a loop":          func(path string) error { return os.Symlink(filepath.Base(path), path) },
		"a socket": func(path string) error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Bind(fd, &unix.SockaddrUnix{Name: path})
		},
	} {
		for _, name := range []string{StateFile, ManifestFile, SumsFile, PagesFile, MemoryFile, "."} {
			dir := small(t)
			path := filepath.Join(dir, name)
			err := os.RemoveAll(strings.TrimSuffix(path, "/."))
			if err == nil {
				err = put(path)
			}
			if err != nil {
				t.Fatal(err)
			}
			s, err := Open(dir)
			if err == nil {
				s.Close()
			}
			if err == nil || name != "." && !strings.Contains(err.Error(), name) {
				t.Errorf("%s is %s: %v", name, what, err)
			}
		}
	}
}

func TestManifestRefuses(t *testing.T) {
	good := func() Manifest {
		m := testManifest()
		m.Format, m.ID, m.Kind, m.Memory = current, strings.Repeat("ab", 16), Full, layout(ram)
		return m
	}
	for name, change := range map[string]func(*Manifest){
		"id":            func(m *Manifest) { m.ID = strings.Repeat("AB", 16) },
		"short id":      func(m *Manifest) { m.ID = "ab" },
		"kind":          func(m *Manifest) { m.Kind = "half" },
		"no base":       func(m *Manifest) { m.Kind = Diff },
		"a base":        func(m *Manifest) { m.Base = &Base{"x", m.ID} },
		"base's id":     func(m *Manifest) { m.Kind, m.Base = Diff, &Base{"x", ""} },
		"base's path":   func(m *Manifest) { m.Kind, m.Base = Diff, &Base{"", m.ID} },
		"zero in base":  func(m *Manifest) { m.Kind, m.Base = Diff, &Base{"a\x00", m.ID} },
		"page size":     func(m *Manifest) { m.Memory.PageSize = 1 },
		"no ranges":     func(m *Manifest) { m.Memory.Ranges = nil },
		"size":          func(m *Manifest) { m.Memory.Size++ },
		"large":         func(m *Manifest) { m.Memory.Ranges[1].Size = 1 << 63 },
		"out of 64 bit": func(m *Manifest) { m.Memory.Ranges[1].Start = 1<<64 - PageSize },
		"many ranges":   func(m *Manifest) { m.Memory.Ranges = make([]MemoryRange, MaxRanges+1) },
		"disk's file":   func(m *Manifest) { m.Disks[0].File = "a/b" },
	} {
		m := good()
		change(&m)
		if _, err := m.encode(); err == nil {
			t.Errorf("%s: encode took %+v", name, m)
		}
	}
	m := good()
	p, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	more := bytes.Replace(p, []byte(`"id"`), []byte(`"more": [1, {}], "id"`), 1)
	if _, err := decodeManifest(more); err != nil {
		t.Errorf("a field that is not known: %v", err)
	}
	for _, text := range []string{``, `{}`, `[]`, `null`, `{"format": 1}`, `{"format": "1"}`, `{"format": "1.0"}`, `{"format": "1.99999"}`} {
		if _, err := decodeManifest([]byte(text)); err == nil {
			t.Errorf("manifest %s was taken", text)
		}
	}
}
