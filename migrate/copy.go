package migrate

import (
	"context"
	"errors"
	"time"

	"github.com/godwit-vmm/godwit/memory"
)

// Source is a machine whose memory is copied while it runs.
type Source interface {
	// Memory is the guest's.
	Memory() *memory.Guest
	// StartDirtyLog has writes noted from now on, and FetchDirty sets the bits
	// of the pages that were written since its last call, all by the first.
	StartDirtyLog() error
	FetchDirty(dst []uint64) error
	// Pause returns when the guest, and all that works for it, stands still.
	Pause()
	Resume()
}

// PageWriter takes pages of guest memory.
type PageWriter interface {
	// WritePages takes the pages that lie in the memory from offset on (see
	// memory.Region.Offset). The guest may write to p at the same time; the
	// same pages are then given again.
	WritePages(offset int64, p []byte) error
}

// Report says how a copy went.
type Report struct {
	// Rounds before the pause, and all bytes that were copied.
	Rounds int    `json:"rounds"`
	Bytes  uint64 `json:"bytes"`
	// Rest is what was copied within the pause.
	Rest uint64 `json:"rest"`
	// Pause is how long the guest stood still.
	Pause time.Duration `json:"pause_ns"`
	Total time.Duration `json:"total_ns"`
}

const (
	// stashSize is how much of the rest is put aside within the pause, so that
	// the guest need not wait for the writer: a disk may be busy.
	stashSize = 32 << 20
)

// DefaultLimits are for a snapshot on a disk of this machine: what is left takes
// about two milliseconds to put aside.
var DefaultLimits = Limits{Rest: 4 << 20, Rounds: 12}

// copier copies the memory of one source.
type copier struct {
	src Source
	to  PageWriter
	mem *memory.Guest
	// dirty are the pages of the next round.
	dirty  []uint64
	stay   bool
	report Report
}

// Options say what is copied.
type Options struct {
	Limits
	// Changed, if not nil, are pages that have to be copied, and with them only
	// what the dirty log, which is on already, has; nil is for all of the memory.
	Changed []uint64
	// Stay leaves the guest paused when all went well.
	Stay bool
}

// Copy copies the memory of src to w, and what is written meanwhile again. When
// little is left it pauses the guest, calls paused, which saves the rest of the
// machine's state, and resumes the guest. The copy is the memory at the time of
// paused.
//
// The dirty log is on afterwards: the next FetchDirty has what has been written
// since the pause. After an error the guest runs on.
func Copy(ctx context.Context, src Source, w PageWriter, o Options, paused func() error) (Report, error) {
	c := &copier{src: src, to: w, mem: src.Memory(), stay: o.Stay}
	start := time.Now()
	err := c.begin(o.Changed)
	if err == nil {
		err = c.copy(ctx, o.Limits, paused)
	}
	c.report.Total = time.Since(start)
	return c.report, err
}

// begin finds out what the first round has to copy.
func (c *copier) begin(changed []uint64) error {
	words := (c.mem.Size()/memory.PageSize + 63) / 64
	c.dirty = make([]uint64, words)
	if changed != nil {
		copy(c.dirty, changed)
		return c.src.FetchDirty(c.dirty)
	}
	if err := c.src.StartDirtyLog(); err != nil {
		return err
	}
	// First the log and then the pages that are there: one that is written in
	// between is in both, the other way round it would be in none.
	if err := c.src.FetchDirty(make([]uint64, words)); err != nil {
		return err
	}
	return c.mem.Present(c.dirty)
}

func (c *copier) copy(ctx context.Context, l Limits, paused func() error) error {
	for p := (Progress{Round: 1}); ; p.Round++ {
		n, err := c.round(ctx)
		if err != nil {
			return err
		}
		p.Before = n
		c.report.Rounds, c.report.Bytes = p.Round, c.report.Bytes+n
		if err := c.src.FetchDirty(c.dirty); err != nil {
			return err
		}
		p.Dirty = CountBytes(c.dirty)
		if l.enough(p) {
			break
		}
	}
	return c.last(ctx, paused)
}

// last copies what is left while the guest is paused. What does not fit into the
// stash is written then too.
func (c *copier) last(ctx context.Context, paused func() error) error {
	stash := newStash(min(stashSize, 2*CountBytes(c.dirty)+maxRun))
	began := time.Now()
	c.src.Pause()
	running := false
	resume := func() {
		if !running {
			running = true
			c.src.Resume()
			c.report.Pause = time.Since(began)
		}
	}
	defer resume()
	if err := c.src.FetchDirty(c.dirty); err != nil {
		return err
	}
	n := CountBytes(c.dirty)
	if err := EachRun(ctx, c.mem, c.dirty, stash.take(c.to)); err != nil {
		return err
	}
	if err := paused(); err != nil {
		return err
	}
	c.report.Rest, c.report.Bytes = n, c.report.Bytes+n
	if !c.stay {
		resume()
		return stash.flush(c.to)
	}
	// Not before everything is written: it may yet fail.
	if err := stash.flush(c.to); err != nil {
		return err
	}
	running, c.report.Pause = true, time.Since(began)
	return nil
}

// round copies the dirty pages and forgets that they are.
func (c *copier) round(ctx context.Context) (uint64, error) {
	n := CountBytes(c.dirty)
	return n, EachRun(ctx, c.mem, c.dirty, c.to.WritePages)
}

// stash keeps copies of pages for later.
type stash struct {
	buf  []byte
	runs []stashed
}

type stashed struct {
	offset int64
	p      []byte
}

// newStash makes room for size bytes, and has the host provide it now.
func newStash(size uint64) *stash {
	s := &stash{buf: make([]byte, size), runs: make([]stashed, 0, 1024)}
	for i := 0; i < len(s.buf); i += memory.PageSize {
		s.buf[i] = 1
	}
	return s
}

// take returns a function that puts pages aside, or gives them to w when there is
// no room left.
func (s *stash) take(w PageWriter) func(offset int64, p []byte) error {
	return func(offset int64, p []byte) error {
		if len(p) > len(s.buf) {
			return w.WritePages(offset, p)
		}
		n := copy(s.buf, p)
		s.runs = append(s.runs, stashed{offset, s.buf[:n:n]})
		s.buf = s.buf[n:]
		return nil
	}
}

// flush writes what was put aside.
func (s *stash) flush(w PageWriter) error {
	var errs []error
	for _, r := range s.runs {
		if err := w.WritePages(r.offset, r.p); err != nil {
			errs = append(errs, err)
			break
		}
	}
	return errors.Join(errs...)
}
