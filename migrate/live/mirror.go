package live

import (
	"context"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/godwit-vmm/godwit/migrate/stream"
)

// mirror copies one disk, on a goroutine of its own.
type mirror struct {
	disk     Disk
	size     uint64
	sender   *stream.DiskSender
	leftover bool

	mu sync.Mutex
	// dirty are the granules that are to be sent, in addition to those in the log.
	dirty []uint64
	// todo is how many bytes of data were not sent yet for the first time, and known
	// how many dirty ones are to be sent.
	todo, known atomic.Uint64

	// round gets a token after each round. settled is closed when little is left, or
	// it does not get less, and finished when there is nothing left.
	round             chan struct{}
	settled, finished chan struct{}
}

// run copies the disk until the guest stands still, and the rest then.
func (m *mirror) run(ctx context.Context, paused <-chan struct{}) error {
	// First the log, then what is there: a block that is written in between is in both.
	m.disk.StartLog()
	if err := m.all(ctx); err != nil {
		return err
	}
	if err := m.follow(ctx, paused); err != nil {
		return err
	}
	m.look()
	if err := m.send(ctx, nil); err != nil {
		return err
	}
	if err := m.sender.Finish(ctx); err != nil {
		return err
	}
	close(m.finished)
	return nil
}

// all sends the whole disk, but for what the destination has already.
func (m *mirror) all(ctx context.Context) error {
	for at := uint64(0); at < m.size; {
		start, end, err := m.disk.NextData(at)
		if err != nil {
			return err
		}
		// Whole sectors, whatever the file system deals in.
		start, end = start/stream.SectorSize*stream.SectorSize, min(m.size, (end+stream.SectorSize-1)/stream.SectorSize*stream.SectorSize)
		if start > at {
			if err := m.sender.Zero(at, start-at); err != nil {
				return err
			}
		}
		if err := m.first(ctx, max(start, at), end); err != nil {
			return err
		}
		at = end
	}
	m.todo.Store(0)
	return m.sender.Barrier(ctx)
}

// left is how many bytes are to be sent, as far as was known at the last look.
func (m *mirror) left() uint64 { return m.todo.Load() + m.known.Load() }

// askSize is how much the destination is asked about at once.
const askSize = 64 * stream.DiskBlock

// first sends data for the first time.
func (m *mirror) first(ctx context.Context, start, end uint64) error {
	for at := start; at < end; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var n uint64
		var err error
		if m.leftover {
			n = min(askSize, end-at)
			err = m.sender.Same(ctx, at, n, m.read, m.copy)
		} else {
			n = min(stream.DiskBlock, end-at)
			err = m.copy(at, n)
		}
		if err != nil {
			return err
		}
		at += n
		m.todo.Store(m.todo.Load() - min(n, m.todo.Load())) // it was a guess
	}
	return nil
}

func (m *mirror) read(p []byte, offset uint64) error {
	_, err := m.disk.ReadAt(p, int64(offset))
	return err
}

// copy sends at most stream.DiskBlock bytes.
func (m *mirror) copy(offset, length uint64) error {
	if err := m.read(m.sender.Block()[:length], offset); err != nil {
		return err
	}
	return m.sender.Send(offset, int(length))
}

// follow sends what the guest writes, until it stands still.
func (m *mirror) follow(ctx context.Context, paused <-chan struct{}) error {
	for round, settled := 1, false; ; round++ {
		before := m.look()
		if before > 0 {
			if err := m.send(ctx, paused); err != nil {
				return err
			}
			if err := m.sender.Barrier(ctx); err != nil {
				return err
			}
		}
		left := m.look()
		if !settled && (left <= restSize || left > before-before/4 || round >= settleRounds) {
			settled = true
			close(m.settled)
		}
		select {
		case m.round <- struct{}{}:
		default:
		}
		if left <= restSize {
			wait(ctx, paused)
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case isClosed(paused):
			return nil
		}
	}
}

// wait lets some time go by, but not when the guest stands still.
func wait(ctx context.Context, paused <-chan struct{}) {
	t := time.NewTimer(roundPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-paused:
	case <-ctx.Done():
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// look adds what the log has to what is to be sent, which is so many bytes.
func (m *mirror) look() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disk.FetchDirty(m.dirty)
	n := uint64(0)
	for _, w := range m.dirty {
		n += uint64(bits.OnesCount64(w)) * DiskGranule
	}
	m.known.Store(n)
	return n
}

// send sends the granules that are to be sent, until there are none or stop is closed.
func (m *mirror) send(ctx context.Context, stop <-chan struct{}) error {
	for at := uint64(0); !isClosed(stop); {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		first, n := m.take(at)
		if n == 0 {
			break
		}
		at = first + n
		// The last granule may be shorter.
		if err := m.copy(first*DiskGranule, min(n*DiskGranule, m.size-first*DiskGranule)); err != nil {
			return err
		}
	}
	return nil
}

// take takes the next run of granules out of those that are to be sent, from one of them
// on. It is at most a block long, and n is 0 if there is none. They are taken out before
// they are read: what is written from then on comes with the log.
func (m *mirror) take(at uint64) (first, n uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	has := func(g uint64) bool { return m.dirty[g/64]>>(g%64)&1 != 0 }
	end := (m.size + DiskGranule - 1) / DiskGranule
	for at < end && !has(at) {
		if m.dirty[at/64]>>(at%64) == 0 {
			at = (at/64 + 1) * 64
			continue
		}
		at++
	}
	at = min(at, end)
	for first = at; at < end && at-first < stream.DiskBlock/DiskGranule && has(at); at++ {
		m.dirty[at/64] &^= 1 << (at % 64)
	}
	return first, at - first
}
