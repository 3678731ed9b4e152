package stream

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/memory"
)

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
