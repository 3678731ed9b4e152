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

// Sink takes the pages that come, as uffd.Server does. Any goroutine may call it.
type Sink interface {
	// Put and PutZeros bring pages, which may be there already and stay then.
	Put(ctx context.Context, offset uint64, p []byte) error
	PutZeros(ctx context.Context, offset, n uint64) error
}

// Fetcher gets the rest of the memory of a guest that may run already. Any goroutine may
// call its methods.
type Fetcher struct {
	size    uint64
	stall   time.Duration
	prepare func(missing []uint64) (Sink, error)

	// preparing is held while the first list is dealt with.
	preparing sync.Mutex
	left      atomic.Int64  // pages that have not come
	over      chan struct{} // closed when all have come

	mu sync.Mutex
	// sink is nil before the first list has come, and missing are the pages that have
	// not.
	sink    Sink
	missing pageSet
	// asked is the connection that pages are asked for on, and pushed the other one;
	// nil while there is none.
	asked, pushed *channel
	// waiting are the pages that somebody waits for.
	waiting map[uint64]*wanted
	// done is what the source is told at the end.
	done *RestDone
}

// wanted is a page that somebody waits for.
type wanted struct {
	came  chan struct{} // closed when it has come
	late  *time.Timer   // ends a connection on which it does not come
	users int
}

// ErrPagesLost is wrapped by errors about memory that the source has lost.
var ErrPagesLost = errors.New("the rest of the guest's memory is lost")

// NewFetcher makes a fetcher for memory of size bytes. It calls prepare once, with the
// pages that are to come, before the source is told that they may: they have to be
// missing then. Stall is how long a source may not answer; 0 is DefaultStall.
func NewFetcher(size uint64, stall time.Duration, prepare func(missing []uint64) (Sink, error)) *Fetcher {
	if stall == 0 {
		stall = DefaultStall
	}
	return &Fetcher{size: size, stall: stall, prepare: prepare, over: make(chan struct{}), waiting: make(map[uint64]*wanted)}
}

// Over is closed when all pages have come.
func (f *Fetcher) Over() <-chan struct{} { return f.over }

// Left is how many bytes have not come.
func (f *Fetcher) Left() uint64 { return uint64(f.left.Load()) * memory.PageSize }

// Linked says whether there is a connection that pages are asked for on.
func (f *Fetcher) Linked() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked != nil
}

// Page waits until a page has come, and asks for it. It is that of uffd.Source: nil is a
// page that is not missing any more.
func (f *Fetcher) Page(ctx context.Context, offset uint64) ([]byte, error) {
	page := offset / memory.PageSize
	f.mu.Lock()
	if f.missing != nil && !f.missing.has(page, 1) {
		f.mu.Unlock()
		return nil, nil
	}
	w, c := f.waiting[page], f.asked
	first := w == nil
	if first {
		w = &wanted{came: make(chan struct{})}
		f.waiting[page] = w
	}
	w.users++
	if first && c != nil {
		f.expect(w, c)
	}
	f.mu.Unlock()
	if first && c != nil {
		f.want(c, page)
	}
	select {
	case <-w.came:
		return nil, nil
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if w.users--; w.users == 0 && f.waiting[page] == w {
		f.forget(page, w)
	}
	return nil, context.Cause(ctx)
}

// expect ends a connection on which a page does not come in time. The caller holds mu.
func (f *Fetcher) expect(w *wanted, c *channel) {
	if w.late != nil {
		w.late.Stop()
	}
	w.late = time.AfterFunc(f.stall, c.hangUp)
}

// forget ends the waiting for a page. The caller holds mu.
func (f *Fetcher) forget(page uint64, w *wanted) {
	delete(f.waiting, page)
	if w.late != nil {
		w.late.Stop()
	}
}

// want asks for a page. Without success the connection ends, and the page is asked for on
// the next one.
func (f *Fetcher) want(c *channel, page uint64) {
	var buf [headerSize]byte
	h := header{kind: kindWant, offset: page * memory.PageSize, length: memory.PageSize}
	if _, err := c.Write(h.append(buf[:0])); err != nil {
		c.hangUp()
	}
}

// Ask serves the connection that pages are asked for on, until it ends. It takes the
// place of one that was there before. It returns nil when the source has heard of the
// end, and an error that wraps ErrPagesLost when it has said that there are no more
// pages. Ask does not close conn.
func (f *Fetcher) Ask(ctx context.Context, conn net.Conn) error {
	c := &channel{conn, f.stall}
	defer context.AfterFunc(ctx, c.hangUp)()
	err := f.ask(ctx, c)
	f.mu.Lock()
	if f.asked == c {
		f.asked = nil
	}
	f.mu.Unlock()
	if errors.Is(err, errTold) {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("get the rest of guest memory: %w", err)
}

// errTold is the end of a connection whose source has heard that no pages are needed.
var errTold = errors.New("the source knows that no more pages are needed")

func (f *Fetcher) ask(ctx context.Context, c *channel) error {
	if err := c.short(); err != nil {
		return err
	}
	list, err := readList(c, f.size)
	if err == nil {
		err = f.begin(list)
	}
	if err == nil {
		err = sendList(c, f.missing.copied())
	}
	if err == nil {
		err = c.long()
	}
	if err != nil {
		return f.lost(err)
	}
	if ctx.Err() != nil { // its end may have come before the last deadline
		return context.Cause(ctx)
	}
	f.mu.Lock()
	if f.asked != nil {
		f.asked.hangUp()
	}
	f.asked = c
	done := f.done
	var again []uint64
	for page, w := range f.waiting {
		f.expect(w, c)
		again = append(again, page)
	}
	f.mu.Unlock()
	if done != nil {
		f.say(c, done)
	}
	for _, page := range again {
		f.want(c, page)
	}
	return f.lost(f.take(ctx, c, false))
}

// lost marks what the source itself says.
func (f *Fetcher) lost(err error) error {
	var said *PeerError
	if errors.As(err, &said) {
		return fmt.Errorf("%w: the source says: %s", ErrPagesLost, said.Text)
	}
	return err
}

// begin deals with the first list.
func (f *Fetcher) begin(list pageSet) error {
	f.preparing.Lock()
	defer f.preparing.Unlock()
	if f.ready() != nil {
		return nil
	}
	sink, err := f.prepare(list.copied())
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sink, f.missing = sink, list
	n := list.count()
	f.left.Store(int64(n))
	if n == 0 {
		close(f.over)
	}
	return nil
}

// ready is where pages go, nil before the first list has come.
func (f *Fetcher) ready() Sink {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sink
}

// Pushed serves the connection that all other pages come on, until it ends, beside Ask.
// It takes the place of one that was there before, and does not close conn.
func (f *Fetcher) Pushed(ctx context.Context, conn net.Conn) error {
	c := &channel{conn, f.stall}
	f.mu.Lock()
	if f.pushed != nil {
		f.pushed.hangUp()
	}
	f.pushed = c
	f.mu.Unlock()
	defer context.AfterFunc(ctx, c.hangUp)()
	return fmt.Errorf("get the rest of guest memory: %w", f.take(ctx, c, true))
}

// take takes pages from a connection.
func (f *Fetcher) take(ctx context.Context, c *channel, confirm bool) error {
	var buf [headerSize]byte
	payload := make([]byte, pushSize)
	for {
		h, err := readHeader(c, &buf)
		if err != nil {
			return err
		}
		switch {
		case h.kind == kindFail:
			return readFail(c, h)
		case h.kind == kindDone && h.wire == 0:
			return errTold
		case h.kind == kindBarrier && confirm && h.wire == 0:
			if _, err := c.Write(header{kind: kindAck, offset: h.offset}.append(nil)); err != nil {
				return err
			}
			continue
		case h.kind == kindZero && h.wire == 0:
		case h.kind == kindPages && uint64(h.wire) == h.length && h.wire <= pushSize:
		default:
			return fmt.Errorf("frame %v of %d bytes for %d bytes of memory", h.kind, h.wire, h.length)
		}
		if h.length == 0 || (h.offset|h.length)%memory.PageSize != 0 || h.offset > f.size || h.length > f.size-h.offset {
			return fmt.Errorf("%d bytes for %#x: %w, which has %d bytes", h.length, h.offset, errPlace, f.size)
		}
		if err := f.put(ctx, c, h, payload[:h.wire]); err != nil {
			return err
		}
	}
}

// put takes pages.
func (f *Fetcher) put(ctx context.Context, r io.Reader, h header, p []byte) error {
	if _, err := io.ReadFull(r, p); err != nil {
		return noEOF(err)
	}
	if err := h.verify(p); err != nil {
		return err
	}
	sink := f.ready()
	if sink == nil {
		return fmt.Errorf("frame %v before a list of pages", h.kind)
	}
	var err error
	if h.kind == kindZero {
		err = sink.PutZeros(ctx, h.offset, h.length)
	} else {
		err = sink.Put(ctx, h.offset, p)
	}
	if err != nil {
		return err
	}
	first := h.offset / memory.PageSize
	for page := first; page < first+h.length/memory.PageSize; page++ {
		f.came(page)
	}
	return nil
}

// came notes that a page is there.
func (f *Fetcher) came(page uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.missing.take(page) {
		return // nobody can wait for it
	}
	if w := f.waiting[page]; w != nil {
		f.forget(page, w)
		close(w.came)
	}
	if f.left.Add(-1) == 0 {
		close(f.over)
	}
}

// Finish tells the source that no more pages are needed, now or when it dials again: Ask
// returns nil then.
func (f *Fetcher) Finish(d RestDone) {
	f.mu.Lock()
	f.done = &d
	c := f.asked
	f.mu.Unlock()
	if c != nil {
		f.say(c, &d)
	}
}

func (f *Fetcher) say(c *channel, d *RestDone) {
	text, err := json.Marshal(d)
	if err == nil {
		frame := header{kind: kindDone, wire: uint32(len(text)), sum: checksum(text)}.append(nil)
		_, err = c.Write(append(frame, text...))
	}
	if err != nil {
		c.hangUp()
	}
}
