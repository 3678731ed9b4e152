package live

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// ErrLost says that the guest was handed over, and that the destination does not get the
// rest of its memory, without which it cannot go on.
var ErrLost = errors.New("the guest was handed over before all of its memory was there, and is lost")

// PostCopyReport says how the memory came that was not there when the guest ran on.
type PostCopyReport struct {
	// Took is the time from the handover until the last page had come.
	Took time.Duration `json:"took_ns"`
	// Asked are the bytes that went because the guest waited for them, Pushed those that
	// went without that.
	Asked  uint64 `json:"asked_bytes"`
	Pushed uint64 `json:"pushed_bytes"`
	// What the destination has said; zero if its guest has ended before.
	stream.RestDone
}

// rest is the memory that the source sends after the handover.
type rest struct {
	*stream.Rest
	over chan struct{} // closed when it does not any more, for the reason err
	err  error
}

// pair is the connections that it goes over.
type pair struct{ asked, pushed net.Conn }

// The indexes of the two among the urgent channels.
const (
	askedIndex = iota
	pushedIndex
)

// pair makes the connections.
func (s *source) pair(ctx context.Context) (p pair, err error) {
	if p.asked, err = s.dialer.Data(ctx, stream.Urgent, askedIndex); err != nil {
		return pair{}, err
	}
	if p.pushed, err = s.dialer.Data(ctx, stream.Urgent, pushedIndex); err != nil {
		return pair{}, errors.Join(err, p.asked.Close())
	}
	return p, nil
}

// leave pauses the guest and sends its state, and of its memory only a list of what has
// not been sent. Everything that can be slow is done while the guest runs. What has not
// been sent is until longer ends.
func (s *source) leave(ctx, longer context.Context, dirty []uint64) error {
	p, err := s.pair(ctx)
	if err != nil {
		return err
	}
	err = s.last(ctx, dirty, func() error {
		s.report.Downtime.Rest = 0
		r := &rest{
			Rest: stream.NewRest(s.guest.Memory(), dirty, stream.RestOptions{Limit: s.Limit, Stall: s.Waits.Ready}),
			over: make(chan struct{}),
		}
		s.rest = r
		go func() {
			defer close(r.over)
			r.err = s.serveRest(longer, r, p)
		}()
		if err := s.finishMemory(ctx); err != nil {
			return err
		}
		late := time.NewTimer(s.Waits.Ready)
		defer late.Stop()
		select {
		case <-r.Agreed():
			return nil
		case <-r.over:
			return r.err
		case <-late.C:
			return errors.New("the destination did not take the list of pages in time")
		}
	})
	if s.rest == nil { // it did not come so far
		return errors.Join(err, p.asked.Close(), p.pushed.Close())
	}
	return err
}

// serveRest sends the rest of the memory until the destination has it, over as many
// connections as that takes.
func (s *source) serveRest(ctx context.Context, r *rest, p pair) error {
	for {
		err := r.Serve(ctx, p.asked, p.pushed)
		if err == nil || errors.Is(err, stream.ErrUnwanted) || ctx.Err() != nil {
			return err
		}
		s.tell(func(p *Progress) { p.Reason = err.Error() })
		if p, err = s.redialPair(ctx); err != nil {
			return err
		}
		s.tell(func(p *Progress) { p.Reason = "" })
	}
}

// redialPair dials the destination until it answers. It fails if the answer is that the
// destination has no use for pages, or if ctx ends.
func (s *source) redialPair(ctx context.Context) (pair, error) {
	for pause := redialFirst; ; pause = min(2*pause, redialMost) {
		p, err := s.pair(ctx)
		var refused *stream.PeerError
		if err == nil || errors.As(err, &refused) {
			return p, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return p, context.Cause(ctx)
		}
	}
}

// finishRest waits until the destination, whose guest it is by now, has the rest of the
// memory.
func (s *source) finishRest() error {
	r := s.rest
	if r == nil {
		return nil
	}
	t := time.NewTicker(progressTime)
	defer t.Stop()
	for last, at := uint64(0), time.Now(); ; {
		stats := r.Stats()
		sent := stats.Asked + stats.Pushed
		now := time.Now()
		s.tell(func(p *Progress) {
			p.Phase, p.Sent, p.Remaining = PhasePostCopy, s.report.Bytes+s.report.Zero+sent, stats.Missing-min(stats.Missing, sent)
			p.Rate = uint64(float64(sent-last) / max(now.Sub(at).Seconds(), 1e-3))
		})
		last, at = sent, now
		select {
		case <-t.C:
			continue
		case <-r.over:
		}
		stats = r.Stats()
		s.report.Bytes += stats.Asked + stats.Pushed
		s.report.PostCopy = &PostCopyReport{Took: time.Since(s.doneAt), Asked: stats.Asked, Pushed: stats.Pushed, RestDone: r.Done()}
		if r.err == nil || errors.Is(r.err, stream.ErrUnwanted) {
			return nil
		}
		return fmt.Errorf("%w: %w", ErrLost, r.err)
	}
}

// stopRest ends the sending of the rest, of a guest that runs on here.
func (s *source) stopRest() {
	if s.rest != nil {
		<-s.rest.over // its context has ended
	}
}

// eachMissing calls f for the runs of pages, with their guest addresses.
func eachMissing(ctx context.Context, mem *memory.Guest, pages []uint64, f func(gpa memory.GPA, n uint64) error) error {
	return migrate.EachRun(ctx, mem, pages, func(offset int64, p []byte) error {
		for _, r := range mem.Regions() {
			if at := uint64(offset) - r.Offset; uint64(offset) >= r.Offset && at < r.Size {
				return f(r.Start+memory.GPA(at), uint64(len(p)))
			}
		}
		return nil
	})
}
