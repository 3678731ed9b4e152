package live

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// progressTime is how often progress is told within a round.
const progressTime = 250 * time.Millisecond

// copy sends the guest's memory in rounds, pauses the guest, and sends the rest and the
// state.
func (s *source) copy(ctx context.Context) error {
	longer := ctx // the rest of the memory goes on when this has returned
	ctx, end := s.mirrors.start(ctx)
	defer end()
	stop := context.AfterFunc(ctx, func() { _ = s.sender.Close() })
	defer stop()
	if err := s.copyDisks(ctx); err != nil {
		return err
	}
	mem := s.guest.Memory()
	dirty := make([]uint64, (mem.Size()/memory.PageSize+63)/64)
	if err := s.firstRound(dirty); err != nil {
		return err
	}
	s.tell(func(p *Progress) { p.Phase = PhaseCopy })
	var o stream.Observation
	for {
		o.Round++
		if err := s.round(ctx, dirty, &o); err != nil {
			return orCause(ctx, err)
		}
		o.StateBytes = stateSize + s.mirrors.remaining()
		d := stream.Converge(o, s.Policy)
		s.tell(func(p *Progress) {
			p.Round, p.Remaining, p.DirtyRate, p.Predicted = o.Round, o.Dirty, uint64(o.DirtyRate), d.Downtime
		})
		switch d.Action {
		case stream.Continue:
			if s.mirrors.remaining() > o.Dirty {
				if err := s.mirrors.catchUp(ctx); err != nil {
					return err
				}
			}
		case stream.RaiseThrottle:
			o.Throttle = d.Throttle
			s.report.Throttle = max(s.report.Throttle, d.Throttle)
			s.guest.Throttle(d.Throttle)
			s.tell(func(p *Progress) { p.Throttle = d.Throttle })
		case stream.GiveUp:
			return fmt.Errorf("the guest's memory does not get copied fast enough: %s", d.Reason)
		case stream.PostCopy:
			return orCause(ctx, s.leave(ctx, longer, dirty))
		default:
			return orCause(ctx, s.last(ctx, dirty, func() error {
				if err := migrate.EachRun(ctx, s.guest.Memory(), dirty, s.sender.WritePages); err != nil {
					return err
				}
				return s.finishMemory(ctx)
			}))
		}
	}
}

// stateSize is about what is sent of the guest that is neither memory nor disk, in bytes.
const stateSize = 64 << 10

// copyDisks copies the disks that move with the guest, but for what it goes on writing.
func (s *source) copyDisks(ctx context.Context) error {
	if len(s.mirrors.list) == 0 {
		return nil
	}
	s.tell(func(p *Progress) { p.Phase = PhaseCopy })
	last, at := s.mirrors.stats().Wire, time.Now()
	return s.mirrors.settle(ctx, func() {
		wire, now := s.mirrors.stats().Wire, time.Now()
		s.tell(func(p *Progress) { p.Rate = uint64(float64(wire-last) / now.Sub(at).Seconds()) })
		last, at = wire, now
	})
}

// firstRound finds the pages that are there.
func (s *source) firstRound(dirty []uint64) error {
	if err := s.guest.StartDirtyLog(); err != nil {
		return err
	}
	// First the log and then the pages, as in migrate.Copy.
	if err := s.guest.FetchDirty(make([]uint64, len(dirty))); err != nil {
		return err
	}
	return s.guest.Memory().Present(dirty)
}

// round sends the dirty pages, and finds out what was written meanwhile.
func (s *source) round(ctx context.Context, dirty []uint64, o *stream.Observation) error {
	began, pages := time.Now(), s.sender.Stats().Pages
	bytes := migrate.CountBytes(dirty)
	ticking := make(chan struct{})
	ticked := make(chan struct{})
	go func() {
		defer close(ticked)
		s.tick(ticking, bytes)
	}()
	send := func() error {
		if err := migrate.EachRun(ctx, s.guest.Memory(), dirty, s.sender.WritePages); err != nil {
			return err
		}
		return s.sender.Barrier(ctx)
	}
	var err error
	if o.Round == 1 {
		err = s.Trace.around(OpMemory, "first", send)
	} else {
		err = send()
	}
	close(ticking)
	<-ticked
	if err != nil {
		return err
	}
	if err := s.guest.FetchDirty(dirty); err != nil {
		return err
	}
	o.Took = time.Since(began)
	o.Sent, o.Dirty = s.sender.Stats().Pages-pages, migrate.CountBytes(dirty)
	o.Elapsed = time.Since(s.began)
	seconds := max(o.Took.Seconds(), 1e-6)
	o.DirtyRate = float64(o.Dirty) / seconds
	// A round of little says little about the connection.
	if rate := float64(o.Sent) / seconds; o.Bandwidth == 0 || o.Sent > 4<<20 {
		o.Bandwidth = rate
	}
	s.report.Rounds = o.Round
	return nil
}

// tick tells the progress within a round of so many bytes.
func (s *source) tick(done <-chan struct{}, bytes uint64) {
	t := time.NewTicker(progressTime)
	defer t.Stop()
	first := s.sender.Stats()
	last, at := first, time.Now()
	for {
		select {
		case <-done:
			return
		case now := <-t.C:
			stats := s.sender.Stats()
			sent := stats.Pages + stats.Zero
			s.tell(func(p *Progress) {
				p.Sent = sent
				p.Remaining = bytes - min(bytes, sent-first.Pages-first.Zero)
				p.Rate = uint64(float64(stats.Wire-last.Wire) / now.Sub(at).Seconds())
			})
			last, at = stats, now
		}
	}
}

// finishMemory waits until the last page has come, and the last block of a disk. The
// paused guest does not wait longer for a link that is silent than for READY.
func (s *source) finishMemory(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.Waits.Ready, errors.New("the destination did not take the last pages and blocks in time"))
	defer cancel()
	var err error
	if !s.shared {
		err = s.sender.Finish(ctx)
	}
	if err == nil {
		err = s.mirrors.finish(ctx)
	}
	return orCause(ctx, err)
}

// last pauses the guest, and sends its state after send has returned, which deals with
// the pages that are left.
func (s *source) last(ctx context.Context, dirty []uint64, send func() error) error {
	d := &s.report.Downtime
	s.guest.Throttle(0)
	s.tell(func(p *Progress) { p.Phase = PhaseStop })
	s.pausedAt = time.Now()
	s.guest.Pause()
	s.paused = true
	d.Pause = time.Since(s.pausedAt)
	d.DiskRest = s.mirrors.finishLater()
	if !s.shared {
		if err := s.guest.FetchDirty(dirty); err != nil {
			return err
		}
		d.Rest = migrate.CountBytes(dirty)
	}
	// The state is saved while the connections are busy.
	type saved struct {
		state []byte
		err   error
	}
	saving := make(chan saved, 1)
	go func() {
		state, err := s.guest.Save()
		saving <- saved{state, err}
	}()
	err := s.Trace.around(OpMemory, "last", send)
	sent := time.Now()
	d.LastRound = sent.Sub(s.pausedAt) - d.Pause
	state := <-saving
	d.Save = time.Since(sent)
	if err == nil {
		err = state.err
	}
	if err != nil {
		return err
	}
	if !s.shared {
		stats := s.sender.Stats()
		s.report.Bytes, s.report.Zero, s.report.Wire = stats.Pages, stats.Zero, stats.Wire
	}
	s.report.Disks = s.mirrors.stats()
	// Before the state, which READY may follow at once.
	s.driver.postUnless(ctx.Done(), handover.Event{Kind: handover.StateSent})
	if err := s.control.send(frameState, state.state); err != nil {
		return fmt.Errorf("send the state: %w", err)
	}
	return nil
}
