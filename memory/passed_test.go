package memory

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// share makes memory and passes it on.
func share(t *testing.T, o Options) (from, to *Guest) {
	t.Helper()
	from, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = from.Close() })
	file, err := from.Share()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	o.Passed = file
	to, err = New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = to.Close() })
	return from, to
}

func expect(t *testing.T, g *Guest, at GPA, want uint64) {
	t.Helper()
	if got, err := g.Uint64(at); got != want || err != nil {
		t.Errorf("at %#x: %d, %v, want %d", uint64(at), got, err, want)
	}
}

func put(t *testing.T, g *Guest, at GPA, value uint64) {
	t.Helper()
	if err := g.PutUint64(at, value); err != nil {
		t.Fatal(err)
	}
}

// TestPassed: what is written to memory that was passed is seen by nobody else before it
// is adopted.
func TestPassed(t *testing.T) {
	const low, high = 5 * PageSize, GPA(4 << 30)
	from, to := share(t, Options{Size: 3<<30 + 16<<20})
	for _, at := range []GPA{low, high} {
		put(t, from, at, 1)
		expect(t, to, at, 1)
		put(t, to, at, 2)
		expect(t, from, at, 1)
		if _, err := to.Discard(at+PageSize, PageSize); err != nil {
			t.Fatal(err)
		}
		put(t, from, at+PageSize, 3)
	}
	if err := to.Renew(); err != nil {
		t.Fatal(err)
	}
	for _, at := range []GPA{low, high} {
		expect(t, to, at, 1)
		expect(t, to, at+PageSize, 3)
		put(t, to, at, 4)
	}
	for range 2 {
		if err := to.Adopt(); err != nil {
			t.Fatal(err)
		}
	}
	if err := to.Renew(); err != nil { // not any more
		t.Fatal(err)
	}
	if err := from.Close(); err != nil {
		t.Fatal(err)
	}
	for _, at := range []GPA{low, high} {
		expect(t, to, at, 1)
		put(t, to, at, 5)
		expect(t, to, at, 5)
		if n, err := to.Discard(at, PageSize); n != PageSize || err != nil {
			t.Fatal(n, err)
		}
		expect(t, to, at, 0)
		expect(t, to, at+PageSize, 3)
	}
	again, err := to.Share()
	if again == nil || err != nil {
		t.Fatalf("it cannot be passed on: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestPassedHuge is TestPassed with pages of the host's pool.
func TestPassedHuge(t *testing.T) {
	const size = 8 << 20
	if g, err := New(Options{Size: size, HugePages: true}); err != nil {
		t.Skipf("no huge pages here: %v", err)
	} else if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	from, to := share(t, Options{Size: size, HugePages: true})
	put(t, from, 0, 1)
	expect(t, to, 0, 1)
	if err := to.Adopt(); err != nil {
		t.Fatal(err)
	}
	put(t, to, 8, 2)
	expect(t, from, 8, 2)
}

// TestPassedWrong: a file that is not memory of the guest that comes is refused.
func TestPassedWrong(t *testing.T) {
	const size = 1 << 20
	memfd := func(length int64, seals int) *os.File {
		fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "test")
		t.Cleanup(func() { _ = f.Close() })
		if err := f.Truncate(length); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
			t.Fatal(err)
		}
		return f
	}
	regular, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = regular.Close() })
	if err := regular.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		file *os.File
		want string
	}{
		{"smaller", memfd(size/2, unix.F_SEAL_SHRINK), "it has 524288 bytes, want 1048576"},
		{"larger", memfd(2*size, unix.F_SEAL_SHRINK), "it has 2097152 bytes"},
		{"may shrink", memfd(size, unix.F_SEAL_GROW), "seals"},
		{"cannot be written", memfd(size, unix.F_SEAL_SHRINK|unix.F_SEAL_WRITE), "seals"},
		{"regular file", regular, "no memfd"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, err := New(Options{Size: size, Passed: tt.file})
			if err == nil {
				_ = g.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	small := memfd(4<<20, unix.F_SEAL_SHRINK)
	if _, err := New(Options{Size: 4 << 20, HugePages: true, Passed: small}); err == nil || !strings.Contains(err.Error(), "huge pages are true") {
		t.Errorf("small pages for huge ones: %v", err)
	}
}
