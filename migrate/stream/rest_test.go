package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/memory"
)

// restSize is that of the memory in these tests, and restPages how many pages it has.
const (
	restSize  = 8 << 20
	restPages = restSize / memory.PageSize
)

// restMemory has a number in each page, but for every eighth, which is zero.
func restMemory(t testing.TB) *memory.Guest {
	t.Helper()
	g, err := memory.New(memory.Options{Size: restSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	for page := uint64(0); page < restPages; page++ {
		if page%8 != 0 {
			if err := g.PutUint64(memory.GPA(page*memory.PageSize+8), page); err != nil {
				t.Fatal(err)
			}
		}
	}
	return g
}

// tray is a Sink that keeps the pages.
type tray struct {
	mu    sync.Mutex
	pages map[uint64]uint64 // the number in it
	twice int
	// full, if set, is called for each page.
	full func(n int)
}

func (s *tray) Put(_ context.Context, offset uint64, p []byte) error {
	for ; len(p) > 0; p = p[memory.PageSize:] {
		s.put(offset, binary.LittleEndian.Uint64(p[8:]))
		offset += memory.PageSize
	}
	return nil
}

func (s *tray) PutZeros(_ context.Context, offset, n uint64) error {
	for ; n > 0; n -= memory.PageSize {
		s.put(offset, 0)
		offset += memory.PageSize
	}
	return nil
}

func (s *tray) put(offset, number uint64) {
	s.mu.Lock()
	if _, ok := s.pages[offset/memory.PageSize]; ok {
		s.twice++
	}
	s.pages[offset/memory.PageSize] = number
	n, full := len(s.pages), s.full
	s.mu.Unlock()
	if full != nil {
		full(n)
	}
}

// check compares what has come with what was to come.
func (s *tray) check(t *testing.T, list []uint64) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for page := uint64(0); page < restPages; page++ {
		got, ok := s.pages[page]
		want := page
		if page%8 == 0 {
			want = 0
		}
		if ok != pageSet(list).has(page, 1) || ok && got != want {
			t.Fatalf("page %d: %d (there: %v), want %d", page, got, ok, want)
		}
	}
}

// fetch is a Rest and its Fetcher.
type fetch struct {
	t       *testing.T
	list    []uint64
	rest    *Rest
	fetcher *Fetcher
	tray    *tray
	work    sync.WaitGroup
}

func newFetch(t *testing.T, o RestOptions) *fetch {
	f := &fetch{t: t, list: newPageSet(restSize), tray: &tray{pages: make(map[uint64]uint64)}}
	for i := range f.list {
		f.list[i] = 0xffff_fff0_0f0f_fff1
	}
	f.rest = NewRest(restMemory(t), f.list, o)
	f.fetcher = NewFetcher(restSize, o.Stall, func(missing []uint64) (Sink, error) {
		if !slices.Equal(missing, f.list) {
			t.Error("the list is another one")
		}
		return f.tray, nil
	})
	t.Cleanup(f.work.Wait)
	return f
}

// connect serves the two over a new pair of connections, until one ends. cut breaks it.
func (f *fetch) connect(ctx context.Context) (served, asked chan error, cut func()) {
	f.t.Helper()
	served, asked = make(chan error, 1), make(chan error, 1)
	a, fromA := tcpPair(f.t)
	p, fromP := tcpPair(f.t)
	f.work.Go(func() { served <- f.rest.Serve(ctx, a, p) })
	f.work.Go(func() {
		asked <- f.fetcher.Ask(ctx, fromA)
		_ = fromA.Close()
	})
	f.work.Go(func() {
		_ = f.fetcher.Pushed(ctx, fromP)
		_ = fromP.Close()
	})
	return served, asked, func() { _, _ = fromA.Close(), fromP.Close() }
}

func tcpPair(t testing.TB) (here, there net.Conn) {
	t.Helper()
	here, there = connected(t)
	t.Cleanup(func() { _, _ = here.Close(), there.Close() })
	return here, there
}

// finish waits for the end, of which both sides know.
func (f *fetch) finish(served, asked <-chan error) {
	f.t.Helper()
	<-f.fetcher.Over()
	f.fetcher.Finish(RestDone{Faults: 7, Longest: time.Second})
	if err := <-served; err != nil {
		f.t.Error(err)
	}
	if err := <-asked; err != nil {
		f.t.Error(err)
	}
	if d := f.rest.Done(); d.Faults != 7 || d.Longest != time.Second {
		f.t.Errorf("the source has heard %+v", d)
	}
	f.tray.check(f.t, f.list)
}

func TestRest(t *testing.T) {
	f := newFetch(t, RestOptions{})
	served, asked, _ := f.connect(t.Context())
	f.finish(served, asked)
	if f.tray.twice != 0 {
		t.Errorf("%d pages came twice", f.tray.twice)
	}
	if s := f.rest.Stats(); s.Asked != 0 || s.Pushed != pageSet(f.list).count()*memory.PageSize || s.Missing != 0 {
		t.Errorf("%+v", s)
	}
}

// TestRestAsked has pages asked for while next to nothing is pushed.
func TestRestAsked(t *testing.T) {
	l := NewLimiter(1)
	f := newFetch(t, RestOptions{Limit: l})
	served, asked, _ := f.connect(t.Context())
	<-f.rest.Agreed()
	var work sync.WaitGroup
	for i := range uint64(8) {
		work.Go(func() {
			for page := i; page < restPages; page += 32 {
				// A second one that wants the same page.
				for range 2 {
					work.Go(func() {
						if p, err := f.fetcher.Page(t.Context(), page*memory.PageSize); p != nil || err != nil {
							t.Errorf("page %d: %d bytes, %v", page, len(p), err)
						}
					})
				}
			}
		})
	}
	work.Wait()
	if n := f.rest.Stats().Asked; n == 0 {
		t.Error("nothing was asked for")
	}
	l.Set(0)
	f.finish(served, asked)
	if f.tray.twice != 0 {
		t.Errorf("%d pages came twice", f.tray.twice)
	}
}

// TestRestOrder: what is pushed begins behind what was asked for.
func TestRestOrder(t *testing.T) {
	f := newFetch(t, RestOptions{})
	f.rest.left = slices.Clone(f.list)
	f.rest.next.Store(restPages / 2)
	first, n := f.rest.takeRun(16)
	if first != restPages/2 || n != 1 {
		t.Errorf("%d pages from %d, want 1 from %d", n, first, restPages/2)
	}
	f.rest.next.Store(restPages - 1)
	f.rest.takeRun(16)
	if first, n = f.rest.takeRun(16); first != 0 || n != 1 {
		t.Errorf("%d pages from %d, want 1 from 0", n, first)
	}
	if first, n = f.rest.takeRun(3); first != 4 || n != 3 {
		t.Errorf("%d pages from %d, want 3 from 4", n, first)
	}
}

// TestRestCut loses the link again and again.
func TestRestCut(t *testing.T) {
	f := newFetch(t, RestOptions{Stall: time.Minute})
	cuts := 0
	for want := 100; ; want += 100 {
		reached := make(chan struct{})
		once := sync.OnceFunc(func() { close(reached) })
		f.tray.mu.Lock()
		f.tray.full = func(n int) {
			if n >= want {
				once()
			}
		}
		f.tray.mu.Unlock()
		served, asked, cut := f.connect(t.Context())
		select {
		case <-reached:
		case <-f.fetcher.Over():
		}
		if f.fetcher.Left() == 0 {
			f.finish(served, asked)
			break
		}
		cuts++
		page := uint64(f.fetcher.next(0))
		waited := make(chan error, 1)
		cut()
		f.work.Go(func() {
			_, err := f.fetcher.Page(t.Context(), page*memory.PageSize)
			waited <- err
		})
		if err := <-served; err == nil || errors.Is(err, ErrUnwanted) {
			t.Fatalf("the source has %v", err)
		}
		if err := <-asked; err == nil || errors.Is(err, ErrPagesLost) {
			t.Fatalf("the destination has %v", err)
		}
		served, asked, cut = f.connect(t.Context())
		if err := <-waited; err != nil {
			t.Fatal(err)
		}
		cut()
		<-served
		<-asked
	}
	if cuts == 0 {
		t.Error("nothing was cut")
	}
}

// next is a page that has not come.
func (f *Fetcher) next(from uint64) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	first, _ := f.missing.next(from, f.size/memory.PageSize)
	return first
}

// TestRestLost ends the source before the destination has all.
func TestRestLost(t *testing.T) {
	f := newFetch(t, RestOptions{Limit: NewLimiter(1)})
	ctx, cancel := context.WithCancelCause(t.Context())
	a, fromA := tcpPair(t)
	p, _ := tcpPair(t)
	served := make(chan error, 1)
	go func() { served <- f.rest.Serve(ctx, a, p) }()
	go func() {
		<-f.rest.Agreed()
		cancel(errors.New("the power is off"))
	}()
	if err := f.fetcher.Ask(t.Context(), fromA); !errors.Is(err, ErrPagesLost) || !strings.Contains(err.Error(), "the power is off") {
		t.Errorf("the destination has %v", err)
	}
	fromA.Close() // for which the source waits
	if err := <-served; err == nil || !strings.Contains(err.Error(), "the power is off") {
		t.Errorf("the source has %v", err)
	}
	waiting, stop := context.WithCancel(t.Context())
	stop()
	if _, err := f.fetcher.Page(waiting, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("who waits has %v", err)
	}
}

// TestRestUnwanted ends the guest before it has all of its memory, without a link.
func TestRestUnwanted(t *testing.T) {
	f := newFetch(t, RestOptions{Limit: NewLimiter(1)})
	served, asked, cut := f.connect(t.Context())
	<-f.rest.Agreed()
	cut()
	<-served
	<-asked
	f.fetcher.Finish(RestDone{Unwanted: true})
	served, asked, _ = f.connect(t.Context())
	if err := <-served; !errors.Is(err, ErrUnwanted) {
		t.Errorf("the source has %v", err)
	}
	if err := <-asked; err != nil {
		t.Errorf("the destination has %v", err)
	}
}

// TestFetcherStalls has a source that does not send what it was asked for.
func TestFetcherStalls(t *testing.T) {
	f := newFetch(t, RestOptions{Stall: 50 * time.Millisecond})
	a, fromA := tcpPair(t)
	asked := make(chan error, 1)
	f.work.Go(func() { asked <- f.fetcher.Ask(t.Context(), fromA) })
	if err := sendList(a, f.list); err != nil {
		t.Fatal(err)
	}
	if _, err := readList(a, restSize); err != nil {
		t.Fatal(err)
	}
	waiting, stop := context.WithCancel(t.Context())
	f.work.Go(func() { _, _ = f.fetcher.Page(waiting, 0) })
	if err := <-asked; err == nil {
		t.Error("the connection goes on")
	}
	stop()
}

// TestFetcherRefuses has sources that say what they may not.
func TestFetcherRefuses(t *testing.T) {
	list := func(words int) []byte {
		var b bytes.Buffer
		if err := sendList(&b, make([]uint64, words)); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	words := restPages / 64
	all := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	frame := func(h header, payload ...byte) []byte {
		h.wire, h.sum = uint32(len(payload)), checksum(payload)
		return append(h.append(nil), payload...)
	}
	for name, said := range map[string][]byte{
		"nothing":          nil,
		"short list":       list(words - 1),
		"long list":        list(words + 1),
		"page first":       frame(header{kind: kindZero, length: memory.PageSize}),
		"page outside":     all(list(words), frame(header{kind: kindZero, offset: restSize, length: memory.PageSize})),
		"half a page":      all(list(words), frame(header{kind: kindZero, length: memory.PageSize / 2})),
		"no page":          all(list(words), frame(header{kind: kindZero})),
		"all and one":      all(list(words), frame(header{kind: kindZero, offset: memory.PageSize, length: restSize})),
		"short page":       all(list(words), frame(header{kind: kindPages, length: memory.PageSize}, 1, 2, 3)),
		"large frame":      all(list(words), frame(header{kind: kindPages, length: pushSize + memory.PageSize}, make([]byte, pushSize+memory.PageSize)...)),
		"barrier":          all(list(words), frame(header{kind: kindBarrier, offset: 1})),
		"want":             all(list(words), frame(header{kind: kindWant, length: memory.PageSize})),
		"end after header": all(list(words), header{kind: kindPages, wire: memory.PageSize, length: memory.PageSize}.append(nil)),
	} {
		t.Run(name, func(t *testing.T) {
			f := NewFetcher(restSize, time.Minute, func([]uint64) (Sink, error) {
				return &tray{pages: make(map[uint64]uint64)}, nil
			})
			a, fromA := tcpPair(t)
			go func() {
				_, _ = a.Write(said)
				_ = a.(*net.TCPConn).CloseWrite()
			}()
			if err := f.Ask(t.Context(), fromA); err == nil {
				t.Error("it is taken")
			}
		})
	}
}

// FuzzFetcher has sources say anything.
func FuzzFetcher(f *testing.F) {
	const size = 1 << 20
	var b bytes.Buffer
	if err := sendList(&b, []uint64{^uint64(0), 1, 0, 0}); err != nil {
		f.Fatal(err)
	}
	page := make([]byte, memory.PageSize)
	list := b.Bytes()
	f.Add(list, true)
	f.Add(append(slices.Clone(list), append(header{kind: kindPages, wire: memory.PageSize, length: memory.PageSize, sum: checksum(page)}.append(nil), page...)...), false)
	f.Add(appendFail(slices.Clone(list), "gone"), true)
	f.Add(header{kind: kindBarrier, offset: 1}.append(slices.Clone(list)), true)
	f.Fuzz(func(t *testing.T, said []byte, asked bool) {
		tray := &tray{pages: make(map[uint64]uint64)}
		fetcher := NewFetcher(size, time.Minute, func([]uint64) (Sink, error) { return tray, nil })
		if !asked {
			_ = fetcher.Ask(t.Context(), &script{Reader: bytes.NewReader(list)})
			_ = fetcher.Pushed(t.Context(), &script{Reader: bytes.NewReader(said)})
		} else {
			_ = fetcher.Ask(t.Context(), &script{Reader: bytes.NewReader(said)})
		}
		for page := range tray.pages {
			if page >= size/memory.PageSize {
				t.Errorf("page %d", page)
			}
		}
	})
}

// FuzzRest has destinations say anything.
func FuzzRest(f *testing.F) {
	var b bytes.Buffer
	if err := sendList(&b, make([]uint64, restPages/64)); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes(), []byte{})
	f.Add(header{kind: kindWant, length: memory.PageSize}.append(slices.Clone(b.Bytes())), header{kind: kindAck, offset: 1}.append(nil))
	f.Add(append(header{kind: kindDone, wire: 2, sum: checksum([]byte("{}"))}.append(slices.Clone(b.Bytes())), "{}"...), []byte{})
	mem := restMemory(f)
	f.Fuzz(func(t *testing.T, asked, pushed []byte) {
		r := NewRest(mem, newPageSet(restSize), RestOptions{Stall: time.Minute})
		_ = r.Serve(t.Context(), &script{Reader: bytes.NewReader(asked)}, &script{Reader: bytes.NewReader(pushed)})
	})
}

// script is a peer that has said all, and takes anything.
type script struct {
	*bytes.Reader
	net.Conn
}

func (s *script) Read(p []byte) (int, error)       { return s.Reader.Read(p) }
func (s *script) Write(p []byte) (int, error)      { return len(p), nil }
func (s *script) Close() error                     { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }
