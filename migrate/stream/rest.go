package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/godwit-vmm/godwit/memory"
)

const (
	// pushSize is how much memory is pushed at once, in bytes, and pushWindow how many
	// times before the destination has taken the first: what the guest asks for and is
	// on its way comes behind that.
	pushSize   = 64 << 10
	pushWindow = 8
)

// ErrUnwanted says that the destination needs no more pages, as its guest has ended.
var ErrUnwanted = errors.New("the guest has ended at the destination before all of its memory was there")

// RestOptions say how the rest of a guest's memory is sent.
type RestOptions struct {
	// Limit is for all pages; those that the guest waits for do not wait for it. nil is
	// none.
	Limit *Limiter
	// Stall is how long the peer may not take a write, or say nothing about what it
	// took; 0 is DefaultStall.
	Stall time.Duration
}

// Rest is the memory of a guest that runs elsewhere by now, as far as it has not been
// sent. The memory must not change. Serve is for one goroutine; the other methods are for
// any.
type Rest struct {
	mem    *memory.Guest
	limit  *Limiter
	stall  time.Duration
	list   []uint64
	agreed chan struct{} // closed when the destination has the list
	first  sync.Once

	// left are the pages that neither were sent on these connections nor were there
	// before; next is where the pushing goes on.
	left pageSet
	next atomic.Uint64

	asked, pushed, missing atomic.Uint64
	done                   RestDone
}

// RestStats says how far the rest is, in bytes.
type RestStats struct {
	// Asked was sent because the guest waited for it, Pushed without that.
	Asked, Pushed uint64
	// Missing is what the destination has not got, as far as it has said.
	Missing uint64
}

// RestDone is what the destination says at the end.
type RestDone struct {
	// Unwanted is set when the guest has ended.
	Unwanted bool `json:"unwanted,omitempty"`
	// Faults is how many times the guest waited for a page, and the others are how
	// long: half of the times, and 99 in 100, no longer than the first two.
	Faults  uint64        `json:"faults"`
	P50     time.Duration `json:"p50_ns"`
	P99     time.Duration `json:"p99_ns"`
	Longest time.Duration `json:"longest_ns"`
}

// NewRest makes it of the pages whose bits are set, numbered like memory.Guest.Dirty.
func NewRest(mem *memory.Guest, pages []uint64, o RestOptions) *Rest {
	if o.Stall == 0 {
		o.Stall = DefaultStall
	}
	r := &Rest{mem: mem, limit: o.Limit, stall: o.Stall, list: pages, agreed: make(chan struct{})}
	r.missing.Store(pageSet(pages).count() * memory.PageSize)
	return r
}

// Agreed is closed when the destination has the list, and takes pages.
func (r *Rest) Agreed() <-chan struct{} { return r.agreed }

// Stats says how far it is.
func (r *Rest) Stats() RestStats {
	return RestStats{Asked: r.asked.Load(), Pushed: r.pushed.Load(), Missing: r.missing.Load()}
}

// Done is what the destination has said when Serve has returned nil or ErrUnwanted.
func (r *Rest) Done() RestDone { return r.done }

// Serve sends the rest over a pair of connections, which it closes. It returns nil when
// the destination has all. After another error than ErrUnwanted it may be called again,
// with new connections. When ctx ends while the destination takes pages, that is told that
// they are lost.
func (r *Rest) Serve(ctx context.Context, asked, pushed net.Conn) error {
	a, p := channel{asked, r.stall}, channel{pushed, r.stall}
	called := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	hungUp := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(hungUp)
		p.hangUp()
		_ = a.SetReadDeadline(past)
	})
	defer stop()
	var work sync.WaitGroup
	defer func() {
		cancel(nil)
		work.Wait()
		_, _ = asked.Close(), pushed.Close()
	}()
	err := r.agree(ctx, a)
	if err == nil {
		work.Go(func() {
			if err := r.push(ctx, p); err != nil {
				cancel(fmt.Errorf("send the rest of guest memory: %w", err))
			}
		})
		err = r.answer(a)
	}
	if err == nil || errors.Is(err, ErrUnwanted) {
		return err
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if called.Err() != nil {
		<-hungUp
		sayLast(channel{asked, min(r.stall, lastTime)}, err)
	}
	return fmt.Errorf("send the rest of guest memory: %w", err)
}

// lastTime is how long a peer may take to hear why a connection ends.
const lastTime = 5 * time.Second

// sayLast says why there are no more pages, and waits until the destination has hung up: a
// connection that is closed with something on it that was not read, such as its last
// questions, is reset, and what was said is lost.
func sayLast(c channel, err error) {
	if _, err := c.Write(appendFail(nil, err.Error())); err != nil {
		return // the caller has the error
	}
	if c.short() == nil {
		_, _ = io.Copy(io.Discard, c)
	}
}

// agree finds out what is missing.
func (r *Rest) agree(ctx context.Context, c channel) error {
	if err := sendList(c, r.list); err != nil {
		return err
	}
	if err := c.short(); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil { // its deadline may have been replaced just now
		return err
	}
	left, err := readList(c, r.mem.Size())
	if err != nil {
		return err
	}
	r.left = left
	r.missing.Store(left.count() * memory.PageSize)
	r.first.Do(func() { close(r.agreed) })
	if err := c.long(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// answer sends the pages that are asked for.
func (r *Rest) answer(c channel) error {
	var buf [headerSize]byte
	var frame []byte
	for {
		h, err := readHeader(c, &buf)
		if err != nil {
			return noEOF(err)
		}
		switch {
		case h.kind == kindDone:
			return r.ended(c, h)
		case h.kind == kindFail:
			return readFail(c, h)
		case h.kind != kindWant || h.wire != 0 || h.length != memory.PageSize:
			return fmt.Errorf("frame %v of %d bytes, want %v", h.kind, h.wire, kindWant)
		}
		p, err := find(r.mem, h.offset, h.length)
		if err != nil {
			return err
		}
		r.next.Store(p.first + 1)
		if !r.left.take(p.first) {
			continue // it is on its way, or has come
		}
		if frame, err = r.append(frame[:0], p); err != nil {
			return err
		}
		r.limit.spend(len(frame))
		if _, err := c.Write(frame); err != nil {
			return err
		}
		r.asked.Add(memory.PageSize)
	}
}

// ended reads what the destination says at the end.
func (r *Rest) ended(c channel, h header) error {
	if h.wire > maxText {
		return fmt.Errorf("frame %v of %d bytes: want at most %d", h.kind, h.wire, maxText)
	}
	text := make([]byte, h.wire)
	if _, err := io.ReadFull(c, text); err != nil {
		return noEOF(err)
	}
	if err := h.verify(text); err != nil {
		return err
	}
	if err := json.Unmarshal(text, &r.done); err != nil {
		return fmt.Errorf("frame %v: %w", h.kind, err)
	}
	// Without it the destination waits, which nobody minds.
	_, _ = c.Write(header{kind: kindDone}.append(nil))
	if r.done.Unwanted {
		return ErrUnwanted
	}
	r.missing.Store(0)
	return nil
}
