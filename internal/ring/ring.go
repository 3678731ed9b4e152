// Package ring keeps the end of what a guest has written to its console since it
// was started, and shows it to whoever attaches: first what is kept, then what
// comes.
//
// The guest never waits for a reader. One that is too slow loses the oldest
// bytes, and is told in their place how many.
package ring

import (
	"context"
	"fmt"
	"io"
	"sync"
)

// DefaultSize is how many bytes a console keeps unless the user wants another
// number.
const DefaultSize = 1 << 20

// firstSize is how much a Ring starts with: most guests do not say much.
const firstSize = 4 << 10

// Ring holds the last bytes that were written to it. All methods may be called
// from any goroutine.
type Ring struct {
	limit int

	mu sync.Mutex
	// buf grows up to limit, and is a circle from then on: byte n of the
	// whole output is at n % len(buf).
	buf     []byte
	end     uint64 // bytes written, all in all
	closed  bool
	readers map[*Reader]struct{}
	idle    chan struct{} // closed when the last reader goes; nil if nobody waits
}

// New makes a ring that keeps the last size bytes.
func New(size int) *Ring {
	size = max(size, 1)
	return &Ring{limit: size, buf: make([]byte, min(size, firstSize)), readers: make(map[*Reader]struct{})}
}

// Write appends p. It never waits for a reader and never fails; it allocates only
// while the ring grows to its size. What is written after Close is dropped.
func (r *Ring) Write(p []byte) (int, error) {
	n := len(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || n == 0 {
		return n, nil
	}
	r.grow(n)
	// Of more than the ring holds only the end matters.
	skip := max(0, n-len(r.buf))
	r.end += uint64(skip)
	p = p[skip:]
	at := int(r.end % uint64(len(r.buf)))
	copy(r.buf, p[copy(r.buf[at:], p):])
	r.end += uint64(len(p))
	r.wake()
	return n, nil
}

// grow makes room for n bytes more, up to the limit. The caller holds mu.
func (r *Ring) grow(n int) {
	size := len(r.buf)
	want := r.end + uint64(n)
	if size == r.limit || want <= uint64(size) {
		return
	}
	for size < r.limit && uint64(size) < want {
		size = min(2*size, r.limit)
	}
	// It has never been full, so it is no circle yet.
	buf := make([]byte, size)
	copy(buf, r.buf[:r.end])
	r.buf = buf
}

// oldest is the number of the first byte that is kept. The caller holds mu.
func (r *Ring) oldest() uint64 { return r.end - min(r.end, uint64(len(r.buf))) }

// wake tells all readers to look again. The caller holds mu.
func (r *Ring) wake() {
	for reader := range r.readers {
		reader.wake()
	}
}

// Written is the number of bytes that were written so far.
func (r *Ring) Written() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.end
}

// Bytes is a copy of what is kept.
func (r *Ring) Bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := make([]byte, r.end-r.oldest())
	r.copy(kept, r.oldest())
	return kept
}

// copy fills p with what is kept from a position on. The caller holds mu and
// knows that there is so much.
func (r *Ring) copy(p []byte, from uint64) {
	at := int(from % uint64(len(r.buf)))
	copy(p[copy(p, r.buf[at:]):], r.buf)
}

// Close says that nothing more comes: readers get what is left, and then io.EOF.
func (r *Ring) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.wake()
	return nil
}

// Drain returns when all readers have gone, which they do after Close when they
// have read the rest, or when ctx ends: a reader need not ever read.
func (r *Ring) Drain(ctx context.Context) error {
	r.mu.Lock()
	if len(r.readers) == 0 {
		r.mu.Unlock()
		return nil
	}
	if r.idle == nil {
		r.idle = make(chan struct{})
	}
	idle := r.idle
	r.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Reader reads what a ring keeps and what comes. Read is for one goroutine, Close
// for any.
type Reader struct {
	r    *Ring
	pos  uint64
	note []byte // what is still to be said of lost bytes
	// more has a token when there may be something to read.
	more chan struct{}
	gone chan struct{}
	once sync.Once
}

// Attach makes a reader, whose Close it is to the caller to call.
func (r *Ring) Attach() *Reader {
	reader := &Reader{r: r, more: make(chan struct{}, 1), gone: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.readers[reader] = struct{}{}
	return reader
}

func (c *Reader) wake() {
	select {
	case c.more <- struct{}{}:
	default:
	}
}

// Read waits for something to read. In the place of lost bytes it returns a line
// that says how many. It returns io.EOF at the end of a closed ring, and
// io.ErrClosedPipe after Close.
func (c *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		select {
		case <-c.gone:
			return 0, io.ErrClosedPipe
		default:
		}
		if n, err := c.take(p); n > 0 || err != nil {
			return n, err
		}
		select {
		case <-c.more:
		case <-c.gone:
		}
	}
}

// take copies what there is.
func (c *Reader) take(p []byte) (int, error) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	// One note at a time: they are not to pile up.
	if oldest := c.r.oldest(); c.pos < oldest && len(c.note) == 0 {
		c.note = lostNote(oldest - c.pos)
		c.pos = oldest
	}
	if len(c.note) > 0 {
		n := copy(p, c.note)
		c.note = c.note[n:]
		return n, nil
	}
	n := int(min(c.r.end-c.pos, uint64(len(p))))
	if n == 0 && c.r.closed {
		return 0, io.EOF
	}
	c.r.copy(p[:n], c.pos)
	c.pos += uint64(n)
	return n, nil
}

// lostNote is a line of its own, also on a terminal in raw mode.
func lostNote(n uint64) []byte { return fmt.Appendf(nil, "\r\n[%d bytes lost]\r\n", n) }

// Close ends the reader, and a Read that waits.
func (c *Reader) Close() error {
	c.once.Do(func() {
		close(c.gone)
		c.r.mu.Lock()
		defer c.r.mu.Unlock()
		delete(c.r.readers, c)
		if len(c.r.readers) == 0 && c.r.idle != nil {
			close(c.r.idle)
			c.r.idle = nil
		}
	})
	return nil
}
