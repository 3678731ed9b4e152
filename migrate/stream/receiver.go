package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/godwit-vmm/godwit/memory"
)

// ReceiverOptions say how pages are received.
type ReceiverOptions struct {
	// Stall is how long the source may leave a frame unfinished, or not take an
	// answer; 0 is DefaultStall. Between frames it may be silent.
	Stall time.Duration
}

// Receiver puts what a Sender sends into a guest's memory, which nobody else uses
// meanwhile. Any goroutine may call its methods.
type Receiver struct {
	mem   *memory.Guest
	stall time.Duration
	// content are the pages that may hold something else than zeros, and received
	// those that came at least once, as pages or as zeros.
	content, received pageSet

	// broken ends when a connection fails.
	broken context.Context
	fail   context.CancelCauseFunc

	pages, zero, wire atomic.Uint64
}

// NewReceiver makes a receiver. What the memory holds already stays until it is sent.
func NewReceiver(mem *memory.Guest, o ReceiverOptions) (*Receiver, error) {
	if o.Stall == 0 {
		o.Stall = DefaultStall
	}
	r := &Receiver{mem: mem, stall: o.Stall, content: newPageSet(mem.Size()), received: newPageSet(mem.Size())}
	if err := mem.Present(r.content); err != nil {
		return nil, err
	}
	r.broken, r.fail = context.WithCancelCause(context.Background())
	return r, nil
}

// Serve receives from one connection until the sender finishes, which gives nil. An
// error, or the end of the context, ends the Serve of all connections, and the sources
// are told why; some of the memory may then be wrong. Serve does not close conn.
func (r *Receiver) Serve(ctx context.Context, conn net.Conn) error {
	stops := []func() bool{
		context.AfterFunc(ctx, func() {
			r.fail(fmt.Errorf("receive guest memory: %w", context.Cause(ctx)))
		}),
		context.AfterFunc(r.broken, func() { _ = conn.SetReadDeadline(past) }),
	}
	defer func() {
		for _, stop := range stops {
			stop()
		}
	}()
	c := newIntake(r, conn)
	defer c.close()
	err := c.run()
	if err == nil {
		return nil
	}
	r.fail(fmt.Errorf("receive guest memory: %w", err)) // nothing, if it is not the first
	err = context.Cause(r.broken)
	if conn.SetWriteDeadline(time.Now().Add(min(time.Second, r.stall))) == nil {
		_, _ = conn.Write(appendFail(nil, err.Error())) // the caller has the error too
	}
	return err
}

// Received has a bit for each page that came at least once, as pages or as zeros,
// numbered like memory.Guest.Dirty.
func (r *Receiver) Received() []uint64 { return r.received.copied() }

// Stats says what has been received until now.
func (r *Receiver) Stats() Stats {
	return Stats{Pages: r.pages.Load(), Zero: r.zero.Load(), Wire: r.wire.Load()}
}

// place is memory that a frame is for.
type place struct {
	mem   []byte
	gpa   memory.GPA
	first uint64 // page
	pages uint64
}

// errPlace is wrapped by errors about frames for memory that is not there.
var errPlace = errors.New("not whole pages of this guest's memory")

// find bounds what the source says.
func (r *Receiver) find(offset, length uint64) (place, error) { return find(r.mem, offset, length) }

// find is the memory at an offset.
func find(mem *memory.Guest, offset, length uint64) (place, error) {
	if offset%memory.PageSize == 0 && length%memory.PageSize == 0 && length > 0 && length <= maxPayload {
		for _, region := range mem.Regions() {
			at := offset - region.Offset
			if offset >= region.Offset && at < region.Size && length <= region.Size-at {
				return place{
					mem: region.Mem[at : at+length : at+length], gpa: region.Start + memory.GPA(at),
					first: offset / memory.PageSize, pages: length / memory.PageSize,
				}, nil
			}
		}
	}
	return place{}, fmt.Errorf("%d bytes for %#x: %w, which has %d bytes", length, offset, errPlace, mem.Size())
}

// filled notes that pages were written.
func (r *Receiver) filled(p place) {
	r.mem.MarkDirty(p.gpa, uint64(len(p.mem)))
	r.received.add(p.first, p.pages)
	r.pages.Add(uint64(len(p.mem)))
}

// clear makes the length bytes from offset zeros. Memory that was never used stays
// unused: an idle guest is as sparse here as it was there.
func (r *Receiver) clear(offset, length uint64) error {
	size := r.mem.Size()
	if offset%memory.PageSize != 0 || length%memory.PageSize != 0 || offset > size || length > size-offset {
		return fmt.Errorf("%d zeros for %#x: %w, which has %d bytes", length, offset, errPlace, size)
	}
	for at, end := offset/memory.PageSize, (offset+length)/memory.PageSize; at < end; {
		first, n := r.content.next(at, end)
		if n == 0 {
			break
		}
		if err := r.discard(first*memory.PageSize, n*memory.PageSize); err != nil {
			return err
		}
		r.content.remove(first, n)
		at = first + n
	}
	r.received.add(offset/memory.PageSize, length/memory.PageSize)
	r.zero.Add(length)
	return nil
}

// discard makes memory that was used zeros, and gives it back to the host. Not so huge
// pages: the host's pool may be empty when the guest touches them again.
func (r *Receiver) discard(offset, length uint64) error {
	for _, region := range r.mem.Regions() {
		first, end := max(offset, region.Offset), min(offset+length, region.Offset+region.Size)
		if first >= end {
			continue
		}
		gpa := region.Start + memory.GPA(first-region.Offset)
		if r.mem.HostPageSize() != memory.PageSize {
			clear(region.Mem[first-region.Offset : end-region.Offset])
			r.mem.MarkDirty(gpa, end-first)
			continue
		}
		if _, err := r.mem.Discard(gpa, end-first); err != nil {
			return err
		}
	}
	return nil
}
