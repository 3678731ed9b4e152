package live

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func createDisk(t *testing.T, path string) *DiskFile {
	t.Helper()
	f, err := CreateDiskFile(path, 1<<20, 4096)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestDiskFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	f := createDisk(t, path)
	if exists(t, path) || f.Leftover() {
		t.Errorf("it has its name already: %v, or had contents: %v", exists(t, path), f.Leftover())
	}
	want := make([]byte, 1<<20)
	copy(want[8192:], "contents")
	ones := bytes.Repeat([]byte{1}, 1<<20)
	for _, do := range []func() error{
		func() error { _, err := f.WriteAt(ones, 0); return err },
		func() error { return f.Zero(512, 1<<20-512) },
		func() error { return f.writeZeros(0, 512) },
		func() error { _, err := f.WriteAt([]byte("contents"), 8192); return err },
		f.Sync, f.Commit, f.Commit,
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the disk is something else, %v", err)
	}
	if exists(t, f.Interim()) || !f.Committed() {
		t.Error("it has its old name still")
	}
	if err := f.Remove(); err != nil || exists(t, path) {
		t.Errorf("it was not removed: %v", err)
	}
}

func TestDiskFileRefused(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, path string)
		data    uint64
		want    string
		left    bool // something has the interim name, and keeps it
	}{
		{"there is a file", func(t *testing.T, path string) { put(t, path, "") }, 0, "another path", false},
		{"there is a broken link", func(t *testing.T, path string) { plantLink(t, path) }, 0, "another path", false},
		{"a link has the interim name", func(t *testing.T, path string) { plantLink(t, path+InterimSuffix) }, 0, "symbolic links", true},
		{"another migration", func(t *testing.T, path string) { createDisk(t, path) }, 0, "another migration", true},
		{"no room", func(*testing.T, string) {}, 1 << 60, "has room for", false},
		{"no folder", func(t *testing.T, path string) { os.Remove(filepath.Dir(path)) }, 0, "no such file", false},
	} {
		path := filepath.Join(t.TempDir(), "disk.img")
		test.prepare(t, path)
		_, err := CreateDiskFile(path, 1<<20, test.data)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v", test.name, err)
		}
		if left := exists(t, path+InterimSuffix); left != test.left {
			t.Errorf("%s: left behind: %v", test.name, left)
		}
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func plantLink(t *testing.T, path string) {
	t.Helper()
	if err := os.Symlink("/nowhere", path); err != nil {
		t.Fatal(err)
	}
}

// TestDiskFileTaken: somebody makes a file with the disk's name meanwhile. That one stays,
// whatever becomes of the disk.
func TestDiskFileTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	f := createDisk(t, path)
	put(t, path, "other")
	if err := f.Commit(); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("got %v", err)
	}
	if err := f.Remove(); err != nil || exists(t, f.Interim()) {
		t.Errorf("it was not removed: %v", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "other" {
		t.Errorf("the other file has %q, %v", got, err)
	}
	f = createDisk(t, path+"2")
	if err := errors.Join(f.Commit(), os.Remove(path+"2")); err != nil {
		t.Fatal(err)
	}
	put(t, path+"2", "other")
	if err := f.Remove(); err != nil || !exists(t, path+"2") {
		t.Errorf("another file with its name was removed: %v", err)
	}
}

// TestDiskFileWithdraw: a disk that has its name already is a leftover again.
func TestDiskFileWithdraw(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	f := createDisk(t, path)
	if _, err := f.WriteAt([]byte("x"), 5); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Commit(), f.Withdraw()); err != nil {
		t.Fatal(err)
	}
	if exists(t, path) || f.Committed() {
		t.Error("it has the disk's name")
	}
	f = createDisk(t, path)
	p := make([]byte, 1)
	if _, err := f.ReadAt(p, 5); err != nil || p[0] != 'x' || !f.Leftover() {
		t.Errorf("the next attempt finds %q, %v", p, err)
	}
}

// TestDiskFileLeftover: what was there is kept, and has the size of the disk.
func TestDiskFileLeftover(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	put(t, path+InterimSuffix, strings.Repeat("x", 2<<20))
	f := createDisk(t, path)
	p := make([]byte, 1<<20)
	if n, err := f.ReadAt(p, 0); n != len(p) || err != nil || p[0] != 'x' || !f.Leftover() {
		t.Errorf("%d bytes, %v, leftover %v", n, err, f.Leftover())
	}
	if info, err := os.Stat(f.Interim()); err != nil || info.Size() != 1<<20 {
		t.Errorf("size %d, %v", info.Size(), err)
	}
}
