package blk

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Scratch is an overlay in a file without a name: what the guest writes is gone
// with the process, and flushes have nothing to do. It outlives a Device, so that
// a guest that reboots into a new one finds its disk as it left it. One Device
// uses it at a time. Its methods may be called from any goroutine.
type Scratch struct {
	dir string

	mu   sync.Mutex
	used bool
	// file has the layout of an overlay, with nothing but clusters in it. It
	// is nil until the first use.
	file    *os.File
	present *present
	base    baseID
}

// NewScratch makes a scratch overlay in the file system of a directory, "" for
// that of temporary files. The file is made when a Device is.
func NewScratch(dir string) *Scratch {
	if dir == "" {
		dir = os.TempDir()
	}
	return &Scratch{dir: dir}
}

// Close frees the space. The Device that used it is closed.
func (s *Scratch) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	file := s.file
	s.file, s.present = nil, nil
	return file.Close()
}

// open takes the scratch for a disk, until release. The descriptor is the
// caller's.
func (s *Scratch) open(base baseID) (fd int, p *present, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used {
		return -1, nil, fmt.Errorf("scratch overlay: %w by another disk of this process: give each one of its own", ErrInUse)
	}
	if s.file == nil {
		if err := s.make(base); err != nil {
			return -1, nil, err
		}
	}
	if !s.base.same(base) {
		return -1, nil, fmt.Errorf("the scratch overlay belongs to %v, it does not fit to %v: keep the image as it is, or use another one", s.base, base)
	}
	fd, err = unix.FcntlInt(s.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, nil, fmt.Errorf("open the scratch overlay: %w", err)
	}
	s.used = true
	return fd, s.present, nil
}

func (s *Scratch) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = false
}

// make makes the file.
func (s *Scratch) make(base baseID) error {
	f, err := unnamedFile(s.dir)
	if err != nil {
		return fmt.Errorf("make a scratch overlay in %s: %w", s.dir, err)
	}
	p := newPresent(layoutFor(base.size))
	p.unkept = true
	if err := f.Truncate(int64(p.end())); err != nil {
		return errors.Join(fmt.Errorf("give the scratch overlay its size of %d bytes, most of it a hole: %w", p.end(), err), f.Close())
	}
	s.file, s.present, s.base = f, p, base
	return nil
}

// unnamedFile makes a file without a name.
func unnamedFile(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, unix.O_RDWR|unix.O_TMPFILE|unix.O_EXCL, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		return removedFile(dir)
	}
	return f, err
}

// removedFile is a file that had a name for a moment, for file systems that make
// none without.
func removedFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "godwit-overlay-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
