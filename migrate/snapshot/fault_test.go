package snapshot

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"golang.org/x/sys/unix"
)

// TestStale has the hidden directories of writers in all states that they can be
// left in.
func TestStale(t *testing.T) {
	parent := t.TempDir()
	hidden := func(name, random string) string { return filepath.Join(parent, "."+name+tmpInfix+random) }
	make := func(dir string, files ...string) {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	make(hidden("snap", "0123456789abcdef"))
	make(hidden("snap", "0123456789abcde0"), MemoryFile)
	make(hidden("snap", "0123456789abcde1"), MemoryFile, StateFile, "disk-0")
	make(hidden("other", "0123456789abcdef"), MemoryFile)
	make(hidden("snap", "0123456789abcdeX"), MemoryFile)   // not ours
	make(hidden("snap", "0123456789abcde2"), "only-other") // not ours either
	if err := os.WriteFile(hidden("snap", "0123456789abcde3"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", hidden("snap", "0123456789abcde4")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(hidden("snap", "0123456789abcde5"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(hidden("snap", "0123456789abcde5"), MemoryFile), 0o600); err != nil {
		t.Fatal(err)
	}

	live := begin(t, filepath.Join(parent, "snap"), Options{})
	kept := []string{".snap.tmp-0123456789abcde2", ".snap.tmp-0123456789abcde3", ".snap.tmp-0123456789abcde4", ".snap.tmp-0123456789abcdeX", live.place.tmpDir}
	hasOther := func(want bool) {
		t.Helper()
		if _, err := os.Stat(hidden("other", "0123456789abcdef")); (err == nil) != want {
			t.Errorf("the directory of another snapshot: %v", err)
		}
		for _, name := range kept {
			if _, err := os.Lstat(filepath.Join(parent, name)); err != nil {
				t.Error(err)
			}
		}
		for _, random := range []string{"0123456789abcdef", "0123456789abcde0", "0123456789abcde1"} {
			if _, err := os.Stat(hidden("snap", random)); err == nil {
				t.Errorf("directory %s is still there", random)
			}
		}
	}
	hasOther(true)
	if err := CleanStale(parent); err != nil {
		t.Error(err)
	}
	hasOther(false)
	// A second writer of the same name leaves the first alone; who commits
	// first wins.
	second := begin(t, filepath.Join(parent, "snap"), Options{})
	hasOther(false)
	commit(t, second)
	if err := live.Commit(testManifest(), sections); err == nil {
		t.Error("two snapshots at one place")
	}
}

// TestStaleRace has cleaners at work while writers begin.
func TestStaleRace(t *testing.T) {
	parent := t.TempDir()
	stop := make(chan struct{})
	cleaned := make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				cleaned <- nil
				return
			default:
			}
			if err := CleanStale(parent); err != nil {
				cleaned <- err
				return
			}
		}
	}()
	for range 100 {
		w := begin(t, filepath.Join(parent, "snap"), Options{})
		writePages(t, w, 0, bytes.Repeat([]byte{1}, PageSize))
		if _, err := os.Stat(filepath.Join(parent, w.place.tmpDir, MemoryFile)); err != nil {
			t.Fatal(err)
		}
		if err := w.Abort(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-cleaned; err != nil {
		t.Error(err)
	}
	only(t, parent)
}

// tinyDisk is a file system of so many bytes.
func tinyDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		testenv.Lacks(t, "cannot mount a tmpfs (%v): run as root", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestDiskFull fills the disk at each step, and finds the older snapshot whole.
func TestDiskFull(t *testing.T) {
	parent := tinyDisk(t, "3m")
	older := filepath.Join(parent, "older")
	want := bytes.Repeat([]byte{1}, ramSize)
	full(t, older, want)
	check := func() {
		t.Helper()
		only(t, parent, "older")
		if err := Verify(context.Background(), older, nil); err != nil {
			t.Error(err)
		}
	}
	says := func(err error) {
		t.Helper()
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "free space") {
			t.Errorf("%v, want ENOSPC and what to do", err)
		}
	}
	t.Run("memory", func(t *testing.T) {
		w := begin(t, filepath.Join(parent, "snap"), Options{})
		err := w.WritePages(0, want)
		says(err)
		if again := w.WritePages(0, make([]byte, PageSize)); !errors.Is(again, unix.ENOSPC) {
			t.Errorf("WritePages after an error: %v", again)
		}
		says(w.Commit(testManifest(), nil))
		if err := w.Abort(); err != nil {
			t.Error(err)
		}
		check()
	})
	t.Run("state", func(t *testing.T) {
		w := begin(t, filepath.Join(parent, "snap"), Options{})
		says(w.Commit(testManifest(), []Section{{"large", make([]byte, 2<<20)}}))
		if err := w.Abort(); err != nil {
			t.Error(err)
		}
		check()
	})
	t.Run("merge", func(t *testing.T) {
		diff := filepath.Join(parent, "diff")
		w := begin(t, diff, Options{Base: older})
		writePages(t, w, 0, bytes.Repeat([]byte{2}, PageSize))
		commit(t, w)
		says(Merge(context.Background(), diff, filepath.Join(parent, "out"), nil))
		only(t, parent, "diff", "older")
		if err := os.RemoveAll(diff); err != nil {
			t.Fatal(err)
		}
		check()
	})
}

// limitJob lowers the limit of file sizes of this process while it writes.
func limitJob(parent string) error {
	w, err := Create(filepath.Join(parent, "out"), Options{Memory: ram})
	if err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 256 << 10, Max: 256 << 10}); err != nil {
		return err
	}
	return errors.Join(w.WritePages(0, bytes.Repeat([]byte{1}, ramSize)), w.Abort())
}

// TestFileLimit has a writer in a process of its own reach the limit of file sizes.
func TestFileLimit(t *testing.T) {
	parent := t.TempDir()
	said, err := writer("limit", parent).CombinedOutput()
	if err == nil || !strings.Contains(string(said), unix.EFBIG.Error()) || !strings.Contains(string(said), "ulimit") {
		t.Errorf("writer beyond the limit: %v, says %q", err, said)
	}
	only(t, parent)
}

// TestWriteFails has a memory file that takes no data, and one that cannot be put
// on the disk.
func TestWriteFails(t *testing.T) {
	for name, fail := range map[string]struct {
		path  string
		errno unix.Errno
	}{
		"write": {"/dev/full", unix.ENOSPC},
		"fsync": {"/dev/null", unix.EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			w := begin(t, filepath.Join(parent, "snap"), Options{})
			f, err := os.OpenFile(fail.path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := unix.Dup3(int(f.Fd()), int(w.mem.Fd()), unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			_ = w.WritePages(0, bytes.Repeat([]byte{1}, PageSize))
			if err := w.Commit(testManifest(), sections); !errors.Is(err, fail.errno) {
				t.Errorf("Commit: %v, want %v", err, fail.errno)
			}
			if err := w.Abort(); err != nil {
				t.Error(err)
			}
			only(t, parent)
		})
	}
}
