package blk

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestScratch: what the guest writes is there for the next device, and nothing of
// it is left when the scratch is closed.
func TestScratch(t *testing.T) {
	for _, direct := range []bool{false, true} {
		base, contents := makeBase(t, 1<<20)
		dir := t.TempDir()
		s := NewScratch(dir)
		c := Config{Path: base, Scratch: s, Direct: direct}
		d := session(t, c)
		d.device.WriteConfig(configWriteback, []byte{0})
		want := append([]byte(nil), contents...)
		copy(want[77*512:], pattern(100<<10, 3))
		d.mustSend(typeOut, 77, want[77*512:277*512])
		d.mustSend(typeWriteZeroes, 0, segment(1000, 200, 0))
		clear(want[1000*512 : 1200*512])
		d.mustSend(typeFlush, 0)
		d.expect(0, want)
		if err := d.device.Sync(); err != nil {
			t.Error(err)
		}
		if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
			t.Errorf("the directory has %v, %v", list, err)
		}
		if _, err := New(c); !errors.Is(err, ErrInUse) {
			t.Errorf("second disk: %v, want ErrInUse", err)
		}
		d.end()

		d = session(t, c)
		d.expect(0, want)
		d.end()
		other, _ := makeImage(t, 1<<20)
		if _, err := New(Config{Path: other, Scratch: s}); err == nil || !strings.Contains(err.Error(), "belongs to "+base) {
			t.Errorf("another base: %v", err)
		}
		for range 2 {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		d = session(t, c)
		d.expect(0, contents)
		d.end()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestRemovedFile tests what is done where files cannot be made without a name.
func TestRemovedFile(t *testing.T) {
	dir := t.TempDir()
	f, err := removedFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %v", flags, err)
	}
	if _, err := f.WriteString("x"); err != nil {
		t.Error(err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("the directory has %v, %v", list, err)
	}
}
