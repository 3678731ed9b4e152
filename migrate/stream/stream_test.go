package stream

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godwit-vmm/godwit/memory"
)

const testSize = 8 << 20

// link is a sender, the receiver of what it sends, and their memories.
type link struct {
	src, dst *memory.Guest
	sender   *Sender
	receiver *Receiver
	// served has what each Serve returned.
	served chan error
	// near and far are the ends of the connections.
	near, far []net.Conn
}

func newLink(t testing.TB, near, far []net.Conn, o SenderOptions) *link {
	t.Helper()
	l := &link{
		src: newMemory(t, testSize), dst: newMemory(t, testSize),
		near: near, far: far, served: make(chan error, len(far)),
	}
	var err error
	if l.receiver, err = NewReceiver(l.dst, ReceiverOptions{Stall: o.Stall}); err != nil {
		t.Fatal(err)
	}
	for _, conn := range far {
		go func() { l.served <- l.receiver.Serve(t.Context(), conn) }()
	}
	l.sender = NewSender(near, o)
	t.Cleanup(func() {
		l.sender.Close()
		for _, conn := range far {
			conn.Close()
		}
	})
	return l
}

// send sends pages of the source's memory.
func (l *link) send(t testing.TB, page, n uint64) {
	t.Helper()
	if err := l.sender.WritePages(int64(page*memory.PageSize), l.pages(page, n)); err != nil {
		t.Fatal(err)
	}
}

func (l *link) pages(page, n uint64) []byte {
	return l.src.Regions()[0].Mem[page*memory.PageSize : (page+n)*memory.PageSize]
}

// finish ends the stream and compares the memories.
func (l *link) finish(t testing.TB) {
	t.Helper()
	if err := l.sender.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range l.far {
		if err := <-l.served; err != nil {
			t.Error(err)
		}
	}
	l.compare(t)
}

func (l *link) compare(t testing.TB) {
	t.Helper()
	if !bytes.Equal(l.src.Regions()[0].Mem, l.dst.Regions()[0].Mem) {
		t.Error("the memories differ")
	}
}

// used is how many pages of a memory the host spends memory on.
func used(t testing.TB, g *memory.Guest) int {
	t.Helper()
	words := newPageSet(g.Size())
	if err := g.Present(words); err != nil {
		t.Fatal(err)
	}
	return count(words)
}

func count(s pageSet) int {
	n := 0
	for page := range uint64(len(s) * 64) {
		if s.has(page, 1) {
			n++
		}
	}
	return n
}

var compressions = map[string]Compression{"none": None, "zstd": Zstd, "auto": Auto}

// TestStream sends the memory of a guest that goes on writing, round after round, with
// a barrier only at the end.
func TestStream(t *testing.T) {
	for _, test := range []struct {
		name        string
		connections int
		secure      bool
		compression string
	}{
		{"one connection", 1, false, "none"},
		{"four connections", 4, false, "none"},
		{"three connections with TLS", 3, true, "none"},
		{"compressed", 2, false, "zstd"},
		{"compressed if it pays, with TLS", 2, true, "auto"},
	} {
		t.Run(test.name, func(t *testing.T) {
			near, far := tcpPairs(t, test.connections, test.secure)
			l := newLink(t, near, far, SenderOptions{Compress: compressions[test.compression]})
			ctx, stop := context.WithCancel(t.Context())
			var guest sync.WaitGroup
			guest.Go(func() { scribble(ctx, l.src) })
			defer guest.Wait()
			defer stop()
			dirty := make([]uint64, testSize/memory.PageSize/64)
			for i := range dirty {
				dirty[i] = ^uint64(0)
			}
			for range 20 {
				l.sendDirty(t, dirty)
				clear(dirty)
				l.src.Dirty().Drain(dirty)
			}
			stop()
			guest.Wait()
			l.src.Dirty().Drain(dirty)
			l.sendDirty(t, dirty)
			l.finish(t)
			if n := count(l.receiver.Received()); n != testSize/memory.PageSize {
				t.Errorf("%d pages were received, want all", n)
			}
			sent, got := l.sender.Stats(), l.receiver.Stats()
			if sent.Pages != got.Pages || sent.Zero != got.Zero || sent.Wire != got.Wire || sent.Pages+sent.Zero < testSize {
				t.Errorf("sent %+v, received %+v", sent, got)
			}
		})
	}
}

// scribble writes pages, and makes some of them zero, as a guest does.
func scribble(ctx context.Context, g *memory.Guest) {
	rnd := rand.New(rand.NewPCG(1, 2))
	page := make([]byte, memory.PageSize)
	for ctx.Err() == nil {
		gpa := memory.GPA(rnd.Uint64N(g.Size()/memory.PageSize) * memory.PageSize)
		for i := range page {
			page[i] = byte(rnd.Uint32() >> 5 & 0x7)
		}
		if rnd.IntN(4) == 0 {
			clear(page)
		}
		if err := g.Write(gpa, page); err != nil {
			panic(err)
		}
	}
}

// sendDirty sends the pages whose bits are set.
func (l *link) sendDirty(t testing.TB, dirty []uint64) {
	t.Helper()
	s := pageSet(dirty)
	for at, end := uint64(0), uint64(len(dirty)*64); ; {
		first, n := s.next(at, end)
		if n == 0 {
			return
		}
		for at = first + n; first < at; first += min(256, at-first) {
			l.send(t, first, min(256, at-first))
		}
	}
}

// TestZeros keeps sparse memory sparse, also when pages become zero.
func TestZeros(t *testing.T) {
	near, far := tcpPairs(t, 2, false)
	l := newLink(t, near, far, SenderOptions{})
	write := func(page uint64, x uint64) {
		if err := l.src.PutUint64(memory.GPA(page*memory.PageSize+memory.PageSize-8), x); err != nil {
			t.Fatal(err)
		}
	}
	for _, page := range []uint64{3, 5, 6, 200, 1000, 2047} {
		write(page, page)
	}
	for page := uint64(0); page < 2048; page += 256 {
		l.send(t, page, 256)
	}
	if err := l.sender.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := used(t, l.dst); n != 6 {
		t.Errorf("%d pages of the destination are in use, want 6", n)
	}
	stats := l.sender.Stats()
	if stats.Pages != 6*memory.PageSize || stats.Zero != testSize-stats.Pages || stats.Wire > 7*memory.PageSize {
		t.Errorf("stats %+v", stats)
	}
	// Found, and told.
	write(5, 0)
	l.send(t, 5, 1)
	for _, page := range []uint64{200, 1000} {
		write(page, 0)
	}
	if err := l.sender.ZeroPages(100*memory.PageSize, 1000*memory.PageSize); err != nil {
		t.Fatal(err)
	}
	if err := l.sender.ZeroPages(0, 0); err != nil {
		t.Fatal(err)
	}
	if err := l.sender.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := used(t, l.dst); n != 3 { // before the comparison, which touches all
		t.Errorf("%d pages of the destination are in use, want 3", n)
	}
	l.finish(t)
}

// TestUsedMemory has a destination whose memory is not empty.
func TestUsedMemory(t *testing.T) {
	dst := newMemory(t, testSize)
	if err := dst.PutUint64(0x5000, 1); err != nil {
		t.Fatal(err)
	}
	r, err := NewReceiver(dst, ReceiverOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tape := &tape{in: bytes.NewReader(slices.Concat(
		header{kind: kindZero, length: testSize}.append(nil),
		header{kind: kindFinish, offset: 1}.append(nil),
	))}
	if err := r.Serve(t.Context(), tape); err != nil {
		t.Fatal(err)
	}
	if x, err := dst.Uint64(0x5000); x != 0 || err != nil {
		t.Errorf("%d, %v", x, err)
	}
}

// TestAboveTheHole sends to both regions of a large guest.
func TestAboveTheHole(t *testing.T) {
	const size = uint64(memory.PCIHoleStart) + 1<<20
	src, dst := newMemory(t, size), newMemory(t, size)
	near, far := tcpPairs(t, 2, false)
	r, err := NewReceiver(dst, ReceiverOptions{})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 2)
	for _, conn := range far {
		go func() { served <- r.Serve(t.Context(), conn) }()
	}
	s := NewSender(near, SenderOptions{})
	defer s.Close()
	gpas := []memory.GPA{memory.PCIHoleStart - memory.PageSize, memory.HighStart, memory.HighStart + 1<<20 - memory.PageSize}
	for _, gpa := range gpas {
		if err := src.PutUint64(gpa, uint64(gpa)); err != nil {
			t.Fatal(err)
		}
	}
	for _, region := range src.Regions() {
		tail := max(region.Size, 1<<20) - 1<<20
		if err := s.WritePages(int64(region.Offset+tail), region.Mem[tail:]); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, gpa := range gpas {
		if x, err := dst.Uint64(gpa); x != uint64(gpa) || err != nil {
			t.Errorf("%#x has %#x, %v", uint64(gpa), x, err)
		}
	}
	if err := s.ZeroPages(0, int64(size)); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-served, <-served); err != nil {
		t.Error(err)
	}
	if n := used(t, dst); n != 0 {
		t.Errorf("%d pages are in use", n)
	}
}

func TestUnaligned(t *testing.T) {
	near, far := tcpPairs(t, 1, false)
	l := newLink(t, near, far, SenderOptions{})
	for _, err := range []error{
		l.sender.WritePages(1, make([]byte, memory.PageSize)),
		l.sender.WritePages(0, make([]byte, memory.PageSize-1)),
		l.sender.WritePages(-memory.PageSize, make([]byte, memory.PageSize)),
		l.sender.ZeroPages(0, 1),
		l.sender.ZeroPages(0, -memory.PageSize),
	} {
		if err == nil || !strings.Contains(err.Error(), "want whole pages") {
			t.Error(err)
		}
	}
	l.finish(t) // nothing happened
}
