package stream

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/memory"
)

// push sends the pages that nobody has asked for, in the order of their addresses from
// behind the last one that was. It returns when the connection ends.
func (r *Rest) push(ctx context.Context, c channel) error {
	ctx, cancel := context.WithCancelCause(ctx)
	room := make(chan struct{}, pushWindow)
	var work sync.WaitGroup
	work.Go(func() { cancel(r.confirmed(c, room)) })
	defer work.Wait()
	defer c.hangUp()
	frames := make([]byte, 0, pushSize+2*headerSize)
	for number := uint64(1); ; number++ {
		late := time.NewTimer(r.stall)
		select {
		case room <- struct{}{}:
			late.Stop()
		case <-late.C:
			return fmt.Errorf("the destination has taken nothing for %v: is its machine or the network down?", r.stall)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		var err error
		if frames, err = r.nextPush(ctx, frames[:0]); err != nil {
			return err
		}
		if len(frames) == 0 { // what is asked for may still be under way
			<-ctx.Done()
			return context.Cause(ctx)
		}
		frames = header{kind: kindBarrier, offset: number}.append(frames)
		if _, err := c.Write(frames); err != nil {
			return err
		}
	}
}

// confirmed makes room when the destination has taken a push, until the connection ends.
func (r *Rest) confirmed(c channel, room <-chan struct{}) error {
	var buf [headerSize]byte
	for last := uint64(0); ; last++ {
		h, err := readHeader(c, &buf)
		if err != nil {
			return noEOF(err)
		}
		if h.kind != kindAck || h.wire != 0 || h.offset != last+1 {
			return fmt.Errorf("the destination sent a frame %v with %d after barrier %d, want %v", h.kind, h.offset, last, kindAck)
		}
		select {
		case <-room:
		default:
			return fmt.Errorf("the destination confirmed barrier %d, which was not sent", h.offset)
		}
	}
}

// nextPush appends the frames of the next pages, of none when all have been sent. It
// waits for the limit first: what is asked for meanwhile is not pushed.
func (r *Rest) nextPush(ctx context.Context, frames []byte) ([]byte, error) {
	granted := r.limit.take(ctx.Done(), pushSize)
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	for most := max(uint64(granted)/memory.PageSize, 1); most > 0; {
		first, n := r.takeRun(most)
		if n == 0 {
			break
		}
		p, err := find(r.mem, first*memory.PageSize, n*memory.PageSize)
		if err == nil {
			frames, err = r.append(frames, p)
		}
		if err != nil {
			return nil, err
		}
		r.pushed.Add(n * memory.PageSize)
		most -= n
	}
	r.limit.spend(len(frames) - granted)
	return frames, nil
}

// takeRun takes a run of at most so many pages from those that are left, from where the
// last one ended, or the page that was asked for last.
func (r *Rest) takeRun(most uint64) (first, n uint64) {
	end := r.mem.Size() / memory.PageSize
	at := min(r.next.Load(), end)
	first, run := r.left.next(at, end)
	if run == 0 {
		first, run = r.left.next(0, at)
	}
	for _, region := range r.mem.Regions() {
		if past := (region.Offset + region.Size) / memory.PageSize; first < past {
			run = min(run, past-first)
			break
		}
	}
	for n < min(run, most) && r.left.take(first+n) {
		n++
	}
	if n == 0 && run > 0 {
		return r.takeRun(most) // another was faster
	}
	// Unless somebody has asked for a page meanwhile.
	r.next.CompareAndSwap(at, first+n)
	return first, n
}

// append appends frames of pages.
func (r *Rest) append(frames []byte, p place) ([]byte, error) {
	if err := r.mem.Await(p.mem); err != nil {
		return nil, err
	}
	offset := p.first * memory.PageSize
	for rest := p.mem; len(rest) > 0; {
		n, zero := sameRun(rest)
		h := header{kind: kindZero, offset: offset, length: uint64(n)}
		if zero {
			frames = h.append(frames)
		} else {
			h.kind, h.wire, h.sum = kindPages, uint32(n), checksum(rest[:n])
			frames = append(h.append(frames), rest[:n]...)
		}
		offset, rest = offset+uint64(n), rest[n:]
	}
	return frames, nil
}
