package stream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

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

// TestReceiverFails sends to memory that is not there: the source hears why, on whatever
// connection it sends next.
func TestReceiverFails(t *testing.T) {
	near, far := tcpPairs(t, 3, false)
	l := newLink(t, near, far, SenderOptions{})
	if err := l.sender.WritePages(testSize, make([]byte, memory.PageSize)); err != nil {
		t.Fatal(err)
	}
	err := l.sender.Barrier(t.Context())
	var peer *PeerError
	if !errors.As(err, &peer) || !strings.Contains(peer.Text, "not whole pages of this guest's memory") {
		t.Errorf("the sender says %v", err)
	}
	for range far {
		if err := <-l.served; !errors.Is(err, errPlace) {
			t.Errorf("a connection ended with %v", err)
		}
	}
	if again := l.sender.WritePages(0, l.pages(0, 256)); again == nil || again.Error() != err.Error() {
		t.Errorf("afterwards: %v, want %v", again, err)
	}
}

// TestCut cuts each connection in turn.
func TestCut(t *testing.T) {
	for cut := range 3 {
		near, far := tcpPairs(t, 3, false)
		l := newLink(t, near, far, SenderOptions{})
		l.send(t, 0, 256)
		if err := l.sender.Barrier(t.Context()); err != nil {
			t.Fatal(err)
		}
		near[cut].(*net.TCPConn).CloseWrite()
		if err := l.sender.Barrier(t.Context()); err == nil {
			t.Error("a barrier over a connection that is cut")
		}
		for range far {
			if err := <-l.served; err == nil || !strings.Contains(err.Error(), "closed the connection before it had finished") {
				t.Errorf("a connection ended with %v", err)
			}
		}
	}
}

// TestPeerGone has the receiver's end closed without a word.
func TestPeerGone(t *testing.T) {
	near, far := tcpPairs(t, 2, false)
	s := NewSender(near, SenderOptions{})
	defer s.Close()
	far[1].Close()
	defer far[0].Close()
	mem := bytes.Repeat([]byte{1}, 1<<20)
	var err error
	for err == nil { // until it is noticed; the other connection is full by then
		err = s.WritePages(0, mem)
	}
	if !strings.Contains(err.Error(), "connection 1") {
		t.Error(err)
	}
}

// TestStalls waits for a peer that neither reads nor writes.
func TestStalls(t *testing.T) {
	t.Run("receiver", func(t *testing.T) {
		near, far := tcpPairs(t, 1, false)
		defer far[0].Close()
		s := NewSender(near, SenderOptions{Stall: 50 * time.Millisecond})
		defer s.Close()
		mem := bytes.Repeat([]byte{1}, 1<<20)
		var err error
		for err == nil {
			err = s.WritePages(0, mem)
		}
		if !strings.Contains(err.Error(), "the receiver has taken nothing for 50ms") {
			t.Error(err)
		}
	})
	t.Run("source", func(t *testing.T) {
		near, far := tcpPairs(t, 1, false)
		defer near[0].Close()
		r, err := NewReceiver(newMemory(t, testSize), ReceiverOptions{Stall: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := near[0].Write(header{kind: kindBarrier, offset: 1}.append([]byte{})[:20]); err != nil {
			t.Fatal(err)
		}
		err = r.Serve(t.Context(), far[0])
		if err == nil || !strings.Contains(err.Error(), "left a frame unfinished for 50ms") {
			t.Error(err)
		}
	})
}

// TestCancel stops a sender that waits, in each way that there is.
func TestCancel(t *testing.T) {
	cancelled := errors.New("cancelled")
	t.Run("close", func(t *testing.T) {
		near, far := tcpPairs(t, 2, false)
		defer far[0].Close()
		defer far[1].Close()
		s := NewSender(near, SenderOptions{})
		mem := bytes.Repeat([]byte{1}, 1<<20)
		started := make(chan struct{})
		go func() {
			<-started
			s.Close()
		}()
		var err error
		for i := 0; err == nil; i++ { // nobody reads
			if i == 4 {
				close(started)
			}
			err = s.WritePages(0, mem)
		}
		if !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error("second Close:", err)
		}
		if err := s.Barrier(t.Context()); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
	t.Run("barrier", func(t *testing.T) {
		near, far := tcpPairs(t, 1, false)
		defer far[0].Close()
		s := NewSender(near, SenderOptions{})
		defer s.Close()
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cancelled)
		if err := s.Barrier(ctx); !errors.Is(err, cancelled) {
			t.Error(err)
		}
		if err := s.WritePages(0, nil); err != nil {
			t.Error("nothing to write:", err)
		}
		if err := s.Barrier(t.Context()); !errors.Is(err, cancelled) {
			t.Error("afterwards:", err)
		}
	})
	t.Run("limited", func(t *testing.T) {
		near, far := tcpPairs(t, 1, false)
		l := newLink(t, near, far, SenderOptions{Limit: NewLimiter(1)})
		l.src.Regions()[0].Mem[0] = 1
		l.send(t, 0, 1)
		l.sender.Close() // returns, though the page would take an hour
	})
	t.Run("receiver", func(t *testing.T) {
		near, far := tcpPairs(t, 2, false)
		r, err := NewReceiver(newMemory(t, testSize), ReceiverOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		served := make(chan error, 2)
		for _, conn := range far {
			go func() { served <- r.Serve(ctx, conn) }()
		}
		cancel(cancelled)
		if err := <-served; !errors.Is(err, cancelled) {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, cancelled) {
			t.Error(err)
		}
		var peer *PeerError
		if err := (&lane{}).confirmations(near[0]); !errors.As(err, &peer) || !strings.Contains(peer.Text, "cancelled") {
			t.Errorf("the sender reads %v", err)
		}
		near[0].Close()
		near[1].Close()
	})
}

// TestCorrupt changes each byte of a stream in turn: never is it accepted in silence.
func TestCorrupt(t *testing.T) {
	page := bytes.Repeat([]byte{1}, memory.PageSize)
	good := slices.Concat(
		header{kind: kindPages, offset: 0x1000, length: memory.PageSize, wire: memory.PageSize, sum: checksum(page)}.append(nil),
		page,
		header{kind: kindZero, offset: 0x3000, length: memory.PageSize}.append(nil),
		header{kind: kindFinish, offset: 1}.append(nil),
	)
	dst := newMemory(t, 1<<20)
	for i := -1; i < len(good); i++ {
		stream := slices.Clone(good)
		if i >= 0 {
			stream[i] ^= 1 << (i % 8)
		}
		r, err := NewReceiver(dst, ReceiverOptions{})
		if err != nil {
			t.Fatal(err)
		}
		tape := &tape{in: bytes.NewReader(stream)}
		err = r.Serve(t.Context(), tape)
		if i < 0 && err != nil {
			t.Fatal(err)
		}
		if i >= 0 && (!errors.Is(err, errCorrupt) || !bytes.Contains(tape.out.Bytes(), []byte("changed on the way"))) {
			t.Fatalf("byte %d changed: %v, and the source hears %q", i, err, tape.out.Bytes())
		}
	}
}

// TestHostile sends frames that no sender makes.
func TestHostile(t *testing.T) {
	const page = memory.PageSize
	pages := func(h header, payload int) []byte {
		p := make([]byte, payload)
		h.wire, h.sum = uint32(payload), checksum(p)
		return append(h.append(nil), p...)
	}
	for _, test := range []struct {
		name   string
		stream []byte
		want   string
	}{
		{"nothing", nil, "closed the connection before"},
		{"half a header", header{kind: kindFinish}.append(nil)[:31], "unexpected EOF"},
		{"half a page", pages(header{kind: kindPages, length: page}, page)[:100], "unexpected EOF"},
		{"unknown", header{kind: 1}.append(nil), "does not have"},
		{"an answer", header{kind: kindAck}.append(nil), "does not have"},
		{"payload too long", header{kind: kindPages, length: 2 << 20, wire: 2 << 20}.append(nil), "want at most 1048576"},
		{"odd offset", pages(header{kind: kindPages, offset: 1, length: page}, page), "not whole pages"},
		{"odd length", pages(header{kind: kindPages, length: 1}, 1), "not whole pages"},
		{"no length", pages(header{kind: kindPages}, 0), "not whole pages"},
		{"behind the end", pages(header{kind: kindPages, offset: testSize, length: page}, page), "not whole pages"},
		{"over the end", pages(header{kind: kindPages, offset: testSize - page, length: 2 * page}, 2*page), "not whole pages"},
		{"far away", pages(header{kind: kindPages, offset: ^uint64(0) &^ (page - 1), length: page}, page), "not whole pages"},
		{"around", pages(header{kind: kindPages, offset: page, length: ^uint64(0) &^ (page - 1)}, page), "not whole pages"},
		{"too little", pages(header{kind: kindPages, length: 2 * page}, page), "for 8192 bytes of memory"},
		{"compressed, too long", pages(header{kind: kindZstd, length: page}, page+1), "compressed"},
		{"compressed, empty", pages(header{kind: kindZstd, length: page}, 0), "compressed"},
		{"compressed, rubbish", pages(header{kind: kindZstd, length: page}, 100), "compressed"},
		{"compressed, outside", pages(header{kind: kindZstd, offset: testSize, length: page}, 100), "not whole pages"},
		{"zeros over the end", header{kind: kindZero, offset: page, length: testSize}.append(nil), "not whole pages"},
		{"zeros around", header{kind: kindZero, offset: page, length: ^uint64(0) &^ (page - 1)}.append(nil), "not whole pages"},
		{"half a page of zeros", header{kind: kindZero, length: 1}.append(nil), "not whole pages"},
		{"zeros with payload", pages(header{kind: kindZero, length: page}, 1), "want none"},
		{"barrier with payload", pages(header{kind: kindBarrier}, 1), "want none"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dst := newMemory(t, testSize)
			r, err := NewReceiver(dst, ReceiverOptions{})
			if err != nil {
				t.Fatal(err)
			}
			err = r.Serve(t.Context(), &tape{in: bytes.NewReader(test.stream)})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// TestConfirmations has a receiver that does not keep to the protocol.
func TestConfirmations(t *testing.T) {
	ack := func(n uint64) []byte { return header{kind: kindAck, offset: n}.append(nil) }
	for _, test := range []struct {
		name   string
		stream []byte
		want   string
	}{
		{"nothing", nil, "closed the connection"},
		{"half a header", ack(1)[:10], "unexpected EOF"},
		{"in order", slices.Concat(ack(1), ack(2)), "closed the connection"},
		{"finished", header{kind: kindAck, offset: 1, length: finished}.append(nil), ""},
		{"repeated", slices.Concat(ack(1), ack(1)), "confirmed barrier 1 after 1"},
		{"too early", slices.Concat(ack(1), ack(2), ack(3)), "confirmed barrier 3 after 2, of 2"},
		{"left out", ack(2), "confirmed barrier 2 after 0"},
		{"not an answer", header{kind: kindPages}.append(nil), `sent a frame "PAGE"`},
		{"answer with payload", header{kind: kindAck, offset: 1, wire: 1}.append(nil), `sent a frame "ACKN" of 1 bytes`},
		{"reason", appendFail(nil, "no\x1b[2Jmemory"), `the receiver says: no\x1b[2Jmemory`},
		{"reason cut off", appendFail(nil, "no memory")[:35], "cut off"},
		{"reason too long", header{kind: kindFail, wire: maxText + 1}.append(nil), "want at most 512"},
		{"reason corrupt", append(appendFail(nil, "no memory")[:40], 'x'), "cannot be read"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := &lane{sender: &Sender{confirmed: make(chan uint64, 2)}}
			l.asked.Store(2)
			err := l.confirmations(bytes.NewReader(test.stream))
			if test.want == "" && err == nil {
				return
			}
			if err == nil || test.want == "" || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// tape is a connection that plays what is in and keeps what is written.
type tape struct {
	net.Conn // no address
	in       io.Reader
	out      bytes.Buffer
}

func (c *tape) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *tape) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *tape) SetDeadline(time.Time) error      { return nil }
func (c *tape) SetReadDeadline(time.Time) error  { return nil }
func (c *tape) SetWriteDeadline(time.Time) error { return nil }
