package uffd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

// Source knows what the memory holds.
type Source interface {
	// Page returns the memory from offset on, where a host page begins: that page, and
	// as many whole ones behind it as are at hand; nil is a page of zeros. What it
	// returns must not be changed later. It is called from several goroutines. An
	// error ends the server: a source that may recover waits, until ctx ends.
	Page(ctx context.Context, offset uint64) ([]byte, error)
}

// Config says how a Server serves.
type Config struct {
	Mappings []Mapping
	Source   Source
	// Present has a bit for each memory.PageSize bytes which are there already, and
	// which Source is not asked for; nil if none are. A host page is there if all of
	// it is.
	Present []uint64
	// Ahead is how many bytes behind a fault are brought with it, of those that
	// Source returns. 0 is DefaultAhead; less than a page is no more than that page.
	Ahead uint64
	// Workers is how many faults are served at a time; 0 is DefaultWorkers.
	Workers int
}

// The defaults of Config.
const (
	DefaultAhead   = 64 << 10
	DefaultWorkers = 4
)

// ErrGone says that the process whose memory it is has ended, or has unmapped it.
var ErrGone = errors.New("the memory is gone")

// Server brings the pages of a guest's memory. Its methods may be called from any
// goroutine.
type Server struct {
	fd       *FD
	mappings []Mapping
	source   Source
	ahead    uint64
	workers  int
	pageSize uint64
	// zeros is a page, where the host has no such call for its kind of pages.
	zeros func() []byte

	// present has a bit for each host page that was brought. If it is missing again it
	// was given back, and is zero.
	present *memory.Bitmap
	// pages is how many pages the mappings have.
	pages uint64

	queue queue
	stats counters
}

// NewServer makes a server for memory that is registered with fd.
func NewServer(fd *FD, c Config) (*Server, error) {
	size, pageSize, err := check(c.Mappings)
	if err != nil {
		return nil, err
	}
	s := &Server{
		fd: fd, mappings: c.Mappings, source: c.Source, pageSize: pageSize,
		ahead: c.Ahead, workers: c.Workers,
		zeros:   sync.OnceValue(func() []byte { return make([]byte, pageSize) }),
		present: memory.NewBitmap(size / pageSize),
	}
	if s.ahead == 0 {
		s.ahead = DefaultAhead
	}
	if s.workers == 0 {
		s.workers = DefaultWorkers
	}
	s.queue.init()
	for _, m := range c.Mappings {
		s.pages += m.Size / pageSize
		for offset := m.Offset; c.Present != nil && offset < m.Offset+m.Size; offset += pageSize {
			if whole(c.Present, offset/memory.PageSize, pageSize/memory.PageSize) {
				s.brought(offset, pageSize)
			}
		}
	}
	return s, nil
}

// whole tells whether n bits from first on are set.
func whole(words []uint64, first, n uint64) bool {
	for i := first; i < first+n; i++ {
		if i/64 >= uint64(len(words)) || words[i/64]>>(i%64)&1 == 0 {
			return false
		}
	}
	return true
}

// brought notes that n bytes are there.
func (s *Server) brought(offset, n uint64) { s.present.Set(offset/s.pageSize, n/s.pageSize) }

// Serve serves until ctx ends, which is no error, and neither is the end of the process
// whose memory it is. After another error the pages that are missing are poisoned: who
// waits for one, or will, fails. Before Linux 6.6 they wait for ever, and must be kicked
// before the FD is closed. Serve is called once.
func (s *Server) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for range s.workers {
		wg.Go(func() {
			if err := s.work(ctx); err != nil {
				cancel(err)
			}
		})
	}
	err := s.listen(ctx)
	cancel(err)
	s.queue.close()
	wg.Wait()
	if err = context.Cause(ctx); errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrGone) {
		return nil
	}
	for _, m := range s.mappings {
		err = errors.Join(err, s.fd.GiveUp(m))
	}
	return err
}

// work serves faults until there are no more.
func (s *Server) work(ctx context.Context) error {
	for {
		f, ok := s.queue.take()
		if !ok || ctx.Err() != nil {
			return nil
		}
		if err := s.serve(ctx, f); err != nil {
			return err
		}
	}
}

// serve brings the page of a fault, and what comes with it.
func (s *Server) serve(ctx context.Context, f fault) error {
	page := f.offset / s.pageSize
	var p []byte
	if !s.present.Test(page) {
		var err error
		if p, err = s.source.Page(ctx, f.offset); err != nil {
			return fmt.Errorf("get the guest's memory at offset %#x: %w", f.offset, err)
		}
		if p != nil {
			p = p[:s.run(f.offset, uint64(len(p)))]
			if len(p) == 0 {
				return fmt.Errorf("get the guest's memory at offset %#x: less than a page of %d bytes", f.offset, s.pageSize)
			}
		}
	}
	// A fault that comes from here on may be one on a page that was given back after
	// it was brought: it has to be looked at.
	s.queue.served(f.offset)
	var err error
	if p == nil {
		err = s.zero(ctx, f.offset, s.pageSize)
	} else {
		err = s.put(ctx, f.offset, p)
	}
	s.stats.fault(time.Since(f.at))
	return err
}

// run is how much of n bytes at offset is to be brought: up to a page that is there.
func (s *Server) run(offset, n uint64) uint64 {
	_, left, _ := s.at(offset)
	n = min(n, left, max(s.ahead, s.pageSize)) / s.pageSize * s.pageSize
	for done := s.pageSize; done < n; done += s.pageSize {
		if s.present.Test((offset + done) / s.pageSize) {
			return done
		}
	}
	return n
}

// Put brings pages that nobody has asked for: whole host pages from offset on. Those
// that are there stay as they are.
func (s *Server) Put(ctx context.Context, offset uint64, p []byte) error {
	if _, n, ok := s.at(offset); !ok || (offset|uint64(len(p)))%s.pageSize != 0 || uint64(len(p)) > n {
		return fmt.Errorf("%d bytes for offset %#x are not pages of the guest's memory", len(p), offset)
	}
	return s.put(ctx, offset, p)
}

// PutZeros is Put of n zero bytes.
func (s *Server) PutZeros(ctx context.Context, offset, n uint64) error {
	if _, left, ok := s.at(offset); !ok || (offset|n)%s.pageSize != 0 || n > left {
		return fmt.Errorf("%d bytes of zeros for offset %#x are not pages of the guest's memory", n, offset)
	}
	return s.zero(ctx, offset, n)
}

// Fetch brings the missing host pages of n bytes at offset from the source. It returns
// when ctx ends.
func (s *Server) Fetch(ctx context.Context, offset, n uint64) error {
	end := offset + n
	for offset = offset / s.pageSize * s.pageSize; offset < end; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if _, _, ok := s.at(offset); !ok {
			return fmt.Errorf("there is no guest memory at offset %#x", offset)
		}
		if s.present.Test(offset / s.pageSize) {
			offset += s.pageSize
			continue
		}
		p, err := s.source.Page(ctx, offset)
		if err != nil {
			return fmt.Errorf("get the guest's memory at offset %#x: %w", offset, err)
		}
		done := s.pageSize
		if p == nil {
			err = s.zero(ctx, offset, done)
		} else {
			done = s.run(offset, min(uint64(len(p)), end-offset+s.pageSize-1))
			if done == 0 {
				return fmt.Errorf("get the guest's memory at offset %#x: less than a page of %d bytes", offset, s.pageSize)
			}
			err = s.put(ctx, offset, p[:done])
		}
		if err != nil {
			return err
		}
		offset += done
	}
	return nil
}

// Missing is how many bytes were not brought yet.
func (s *Server) Missing() uint64 { return (s.pages - s.present.Count()) * s.pageSize }

// Present tells whether the host page at offset was brought.
func (s *Server) Present(offset uint64) bool { return s.present.Test(offset / s.pageSize) }

// Release makes the memory like any other when all of it has been brought. Pages that
// are missing now would be zero. It is for the process whose memory it is; Serve is
// still to be ended.
func (s *Server) Release() error {
	if n := s.Missing(); n != 0 {
		return fmt.Errorf("%d bytes of the guest's memory are still missing", n)
	}
	for _, m := range s.mappings {
		if err := s.fd.Unregister(m); err != nil {
			return err
		}
	}
	return nil
}

// put copies whole pages to where they belong.
func (s *Server) put(ctx context.Context, offset uint64, p []byte) error {
	addr, _, _ := s.at(offset)
	s.stats.bytes.Add(uint64(len(p)))
	return s.each(ctx, offset, uint64(len(p)), func(at, n uint64) (int, error) {
		return s.fd.Copy(addr+at, p[at:at+n])
	})
}

func (s *Server) zero(ctx context.Context, offset, n uint64) error {
	addr, _, _ := s.at(offset)
	s.stats.zeros.Add(n)
	return s.each(ctx, offset, n, func(at, n uint64) (int, error) {
		if s.pageSize > memory.PageSize {
			return s.fd.Copy(addr+at, s.zeros())
		}
		return s.fd.Zero(addr+at, n)
	})
}

// retryAfter is how long to wait while the memory is just being changed: for as long as
// it takes to read an event.
const retryAfter = 20 * time.Microsecond

// each has bring, which may do less than asked for, bring n bytes.
func (s *Server) each(ctx context.Context, offset, n uint64, bring func(at, n uint64) (int, error)) error {
	for at := uint64(0); at < n; {
		done, err := bring(at, n-at)
		switch {
		case err == nil:
		case errors.Is(err, unix.EEXIST):
			// Who faulted on it may have come too late to be woken.
			addr, _, _ := s.at(offset + at)
			if err := s.fd.Wake(addr, s.pageSize); err != nil {
				return err
			}
			done = int(s.pageSize)
		case errors.Is(err, unix.EAGAIN):
			if err := context.Cause(ctx); err != nil {
				return err
			}
			time.Sleep(retryAfter)
			continue
		case errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENOENT):
			return fmt.Errorf("page at offset %#x: %w: %w", offset+at, ErrGone, err)
		default:
			return fmt.Errorf("bring the guest's memory at offset %#x: %w", offset+at, err)
		}
		s.brought(offset+at, uint64(done))
		at += uint64(done)
	}
	return nil
}
