package devices

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

const (
	// transmitLimit bounds what a guest can have in flight to the host: one
	// such buffer fills while another is being written.
	transmitLimit = 16 << 10
	// transmitDelay is the least time between two batches. A guest needs an exit
	// for each byte, so that without it every host write would carry one or two.
	// What comes after a longer silence goes out at once. It is too short for a
	// human to notice.
	transmitDelay = 4 * time.Millisecond
)

// ErrClosed is returned for the use of a device after its Close.
var ErrClosed = errors.New("device is closed")

// transmitter takes bytes from vCPU threads, without ever blocking them, and
// writes them in batches to an io.Writer from one goroutine. When the writer
// is slow, room says no until it has caught up.
type transmitter struct {
	w io.Writer
	// drained is called without locks when there is room again after room
	// said no.
	drained func()

	wake    chan struct{} // the first byte of a batch is there
	hurry   chan struct{} // do not wait for more of them
	quit    chan struct{} // closed by close
	stopped chan struct{} // closed when the goroutine has ended

	mu       sync.Mutex
	fill     []byte        // what the guest has sent since the last batch
	spare    []byte        // the buffer to fill next, while the other is written
	writing  bool          // the goroutine is in w.Write
	starved  bool          // room said no: drained is due
	settled  chan struct{} // closed when all is written; nil if nobody waits
	closed   bool
	err      error  // first error of w; from then on bytes are dropped
	overruns uint64 // bytes dropped because the guest ignored room
}

func newTransmitter(w io.Writer, drained func()) *transmitter {
	t := &transmitter{
		w:       w,
		drained: drained,
		wake:    make(chan struct{}, 1),
		hurry:   make(chan struct{}, 1),
		quit:    make(chan struct{}),
		stopped: make(chan struct{}),
		fill:    make([]byte, 0, transmitLimit),
		spare:   make([]byte, 0, transmitLimit),
	}
	go t.run()
	return t
}

// room tells whether n more bytes fit.
func (t *transmitter) room(n int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.fill)+n <= transmitLimit {
		return true
	}
	t.starved = true
	return false
}

// push takes a byte. If there is no room the byte is lost, as on a UART that
// is written to faster than it sends.
func (t *transmitter) push(b byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	if len(t.fill) == transmitLimit {
		t.overruns++
		return
	}
	t.fill = append(t.fill, b)
	switch len(t.fill) {
	case 1:
		signal(t.wake)
	case transmitLimit / 2:
		signal(t.hurry)
	}
}

// signal leaves a token in a channel of capacity one, without blocking.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (t *transmitter) run() {
	defer close(t.stopped)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-t.wake:
		case <-t.quit:
			t.drain()
			return
		}
		select {
		case <-timer.C:
		case <-t.hurry:
		case <-t.quit:
		}
		t.drain()
		timer.Reset(transmitDelay)
	}
}

// drain writes until there is nothing left to write.
func (t *transmitter) drain() {
	for {
		batch, starved := t.take()
		if starved {
			t.drained()
		}
		if batch == nil {
			return
		}
		_, err := t.w.Write(batch)
		t.mu.Lock()
		t.writing = false
		if t.err == nil {
			t.err = err
		}
		t.mu.Unlock()
	}
}

// take swaps the buffers and returns the one to write, or nil when all is
// written, and whether drained is due.
func (t *transmitter) take() (batch []byte, starved bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	starved, t.starved = t.starved, false
	if t.err != nil {
		t.fill = t.fill[:0]
	}
	if len(t.fill) == 0 {
		if t.settled != nil {
			close(t.settled)
			t.settled = nil
		}
		return nil, starved
	}
	batch = t.fill
	t.fill, t.spare = t.spare[:0], batch
	t.writing = true
	return batch, starved
}

// flush waits until every byte pushed so far is written. It returns the first
// error of the writer, or that of the context.
func (t *transmitter) flush(ctx context.Context) error {
	t.mu.Lock()
	if len(t.fill) == 0 && !t.writing {
		defer t.mu.Unlock()
		return t.err
	}
	if t.settled == nil {
		t.settled = make(chan struct{})
	}
	settled := t.settled
	t.mu.Unlock()

	signal(t.hurry)
	return t.await(ctx, settled)
}

// close flushes and ends the goroutine. When ctx ends first, what is left is
// written as soon as the writer lets go, if it does.
func (t *transmitter) close(ctx context.Context) error {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.quit)
	}
	t.mu.Unlock()
	return t.await(ctx, t.stopped)
}

// await waits for event and returns the writer's first error so far.
func (t *transmitter) await(ctx context.Context, event chan struct{}) error {
	select {
	case <-event:
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
