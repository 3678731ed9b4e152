package stream

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/memory"
)

const (
	// chunkSize is how much memory in a row takes the same connection, in bytes.
	chunkSize = 1 << 20
	// queueLength is how many chunks may wait for a connection.
	queueLength = 8
	// DefaultStall is how long a peer may neither read nor send what is due.
	DefaultStall = 30 * time.Second
)

// ErrClosed is what a Sender's methods return after Close.
var ErrClosed = errors.New("the memory stream was closed")

// SenderOptions say how pages are sent.
type SenderOptions struct {
	Compress Compression
	// Limit may be shared by several senders; nil is none.
	Limit *Limiter
	// Stall is how long the peer may not take a write; 0 is DefaultStall.
	Stall time.Duration
}

// Sender sends guest memory to a Receiver. WritePages, ZeroPages, Barrier and Finish are
// for one goroutine; Close and Stats for any. The first error ends everything and is what
// all later calls return.
type Sender struct {
	lanes []*lane
	// barriers counts those that were asked for. Each lane sends its number to
	// confirmed when the receiver has confirmed it.
	barriers  uint64
	confirmed chan uint64

	mu     sync.Mutex
	err    error
	failed chan struct{}
	work   sync.WaitGroup
}

// NewSender makes a sender over connections to one Receiver, at least one. They are the
// sender's from now on.
func NewSender(conns []net.Conn, o SenderOptions) *Sender {
	if o.Stall == 0 {
		o.Stall = DefaultStall
	}
	s := &Sender{confirmed: make(chan uint64, len(conns)), failed: make(chan struct{})}
	for i, conn := range conns {
		s.lanes = append(s.lanes, newLane(s, i, conn, o))
	}
	for _, l := range s.lanes {
		s.work.Go(l.send)
		s.work.Go(l.drain)
		s.work.Go(l.listen)
	}
	return s
}

// WritePages sends whole pages that lie in the memory from offset on (see
// memory.Region.Offset). p may change at any time, and must stay mapped until the next
// Barrier or Close: what is sent is what it holds at some time until then. So look for
// what the guest wrote before, and send it again afterwards, as migrate.Copy does.
func (s *Sender) WritePages(offset int64, p []byte) error {
	if err := aligned(offset, int64(len(p))); err != nil {
		return err
	}
	return s.split(uint64(offset), uint64(len(p)), func(at, n uint64) item {
		return item{kind: kindPages, offset: uint64(offset) + at, pages: p[at : at+n]}
	})
}

// ZeroPages says that the pages from offset on are zeros, whatever was sent before.
func (s *Sender) ZeroPages(offset, length int64) error {
	if err := aligned(offset, length); err != nil {
		return err
	}
	return s.split(uint64(offset), uint64(length), func(at, n uint64) item {
		return item{kind: kindZero, offset: uint64(offset) + at, number: n}
	})
}

func aligned(offset, length int64) error {
	if offset < 0 || length < 0 || offset%memory.PageSize != 0 || length%memory.PageSize != 0 {
		return fmt.Errorf("send %d bytes of guest memory at %#x: want whole pages of %d bytes", length, offset, memory.PageSize)
	}
	return nil
}

// split gives the length bytes from offset to their connections, chunk by chunk.
func (s *Sender) split(offset, length uint64, piece func(at, n uint64) item) error {
	for at := uint64(0); at < length; {
		n := min(length-at, chunkSize-(offset+at)%chunkSize)
		if err := s.give(s.lanes[laneOf(offset+at, len(s.lanes))], piece(at, n)); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// laneOf finds the connection for an address. The factor is 2^64 divided by the golden
// ratio: neighbours, and pages at any regular distance, spread evenly.
func laneOf(offset uint64, lanes int) int {
	hi, _ := bits.Mul64(offset/chunkSize*0x9e37_79b9_7f4a_7c15, uint64(lanes))
	return int(hi)
}

// give waits until the connection has room for another item.
func (s *Sender) give(l *lane, i item) error {
	if err := s.failure(); err != nil {
		return err // even if there is room
	}
	select {
	case l.queue <- i:
		return nil
	case <-s.failed:
		return s.failure()
	}
}

// Barrier returns when all that was given before is in the receiver's memory, and has
// been found whole. When the context ends before, the sender is broken.
func (s *Sender) Barrier(ctx context.Context) error { return s.confirm(ctx, kindBarrier) }

// Finish is Barrier, and the end of the stream: each Receiver.Serve returns. Nothing may
// be sent afterwards.
func (s *Sender) Finish(ctx context.Context) error { return s.confirm(ctx, kindFinish) }

func (s *Sender) confirm(ctx context.Context, k kind) error {
	s.barriers++
	for _, l := range s.lanes {
		if err := s.give(l, item{kind: k, number: s.barriers}); err != nil {
			return err
		}
	}
	for range s.lanes {
		select {
		case <-s.confirmed:
		case <-s.failed:
			return s.failure()
		case <-ctx.Done():
			s.fail(fmt.Errorf("wait for the receiver to confirm memory: %w", context.Cause(ctx)))
			return s.failure()
		}
	}
	return nil
}

// fail keeps the first error and stops all connections.
func (s *Sender) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	s.err = err
	close(s.failed)
	for _, l := range s.lanes {
		// Not Close, which for TLS waits until it has said goodbye.
		_ = l.conn.SetDeadline(past)
	}
}

// past, as a deadline, unblocks those who wait for a connection.
var past = time.Unix(1, 0)

func (s *Sender) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close closes the connections and returns when the guest's memory is not used any more.
// Before Finish it is how a migration is cancelled: other calls return ErrClosed.
func (s *Sender) Close() error {
	s.fail(ErrClosed)
	s.work.Wait()
	var errs []error
	for _, l := range s.lanes {
		errs = append(errs, l.close())
	}
	return errors.Join(errs...)
}

// Stats counts bytes.
type Stats struct {
	// Pages is memory that went as pages, compressed or not, and Zero memory that went
	// as ranges of zeros.
	Pages uint64 `json:"pages"`
	Zero  uint64 `json:"zero"`
	// Wire is what the connections carried, without TLS and below.
	Wire uint64 `json:"wire"`
	// Connections has what each of them carried, of a sender.
	Connections []uint64 `json:"connections,omitempty"`
}

// Stats says what has been sent until now.
func (s *Sender) Stats() Stats {
	var sum Stats
	for _, l := range s.lanes {
		wire := l.wire.Load()
		sum.Pages += l.pages.Load()
		sum.Zero += l.zero.Load()
		sum.Wire += wire
		sum.Connections = append(sum.Connections, wire)
	}
	return sum
}
