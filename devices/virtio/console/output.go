package console

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

const (
	// outputLimit bounds what is on its way to the writer: one such buffer
	// fills while another is being written.
	outputLimit = 64 << 10
	// writeLimit is how much is written at once.
	writeLimit = 16 << 10
)

// Patience is how long a guest waits for a writer that takes nothing at all.
// After that its output is dropped until the writer takes some again: Linux waits
// for its hvc console with interrupts off, so that a terminal which has been
// stopped for long would otherwise stop the guest.
const Patience = 2 * time.Second

// output takes bytes from the device's loop, without ever blocking it, and
// writes them to an io.Writer from one goroutine.
type output struct {
	w io.Writer
	// ready is called without locks when there is room again after take found
	// none.
	ready func()
	warn  func(kind string, err error)
	wake  chan struct{} // there is something to write, or nothing any more
	stall *time.Timer   // runs while the guest waits for the writer

	mu       sync.Mutex
	fill     []byte        // what the guest has sent since the last batch
	spare    []byte        // the buffer to fill next, while the other is written
	writing  bool          // the goroutine is in w.Write
	starved  bool          // take found no room: ready is due
	dropping bool          // the guest's patience is over
	settled  chan struct{} // closed when all is written; nil if nobody waits
	closed   bool
	err      error // first error of w; from then on bytes are dropped
	// taken and dropped are those of Stats.
	taken, dropped uint64
}

func newOutput(w io.Writer, ready func(), warn func(string, error)) *output {
	if w == nil {
		w = io.Discard
	}
	o := &output{
		w: w, ready: ready, warn: warn, wake: make(chan struct{}, 1),
		fill: make([]byte, 0, outputLimit), spare: make([]byte, 0, outputLimit),
	}
	o.stall = time.AfterFunc(Patience, o.giveUp)
	o.stall.Stop()
	go o.run()
	return o
}

// take takes what there is room for of the readable part of a chain from off, and
// returns how much.
func (o *output) take(c *virtio.Chain, off uint32) uint32 {
	o.mu.Lock()
	defer o.mu.Unlock()
	rest := c.ReadLen - off
	if o.dropping || o.err != nil || o.closed {
		o.taken += uint64(rest)
		o.dropped += uint64(rest)
		return rest
	}
	n := c.CopyOut(off, o.fill[len(o.fill):outputLimit])
	o.fill = o.fill[:len(o.fill)+n]
	o.taken += uint64(n)
	if uint32(n) < rest && !o.starved {
		o.starved = true
		o.stall.Reset(Patience)
	}
	signal(o.wake)
	return uint32(n)
}

// put takes one byte if there is room.
func (o *output) put(b byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.taken++
	if len(o.fill) == outputLimit || o.err != nil || o.closed {
		o.dropped++
		return
	}
	o.fill = append(o.fill, b)
	signal(o.wake)
}

// giveUp is called when the guest has waited for long.
func (o *output) giveUp() {
	o.mu.Lock()
	stalled := o.starved
	if stalled {
		o.starved, o.dropping = false, true
	}
	o.mu.Unlock()
	if stalled {
		o.warn("dropped", fmt.Errorf("nobody takes the guest's output for %v: dropping it until somebody does", Patience))
		o.ready()
	}
}

// run writes what was taken until close.
func (o *output) run() {
	for batch := o.next(); batch != nil; batch = o.next() {
		for len(batch) > 0 {
			part := batch[:min(len(batch), writeLimit)]
			n, err := o.w.Write(part)
			if n < len(part) && err == nil {
				err = io.ErrShortWrite
			}
			batch = batch[n:]
			o.wrote(len(batch), err)
			if err != nil {
				break
			}
		}
	}
}

// next waits for something to write and returns it, or nil when there will be
// nothing any more.
func (o *output) next() []byte {
	for {
		o.mu.Lock()
		batch, starved, closed := o.fill, o.starved, o.closed
		o.writing = len(batch) > 0
		if o.writing {
			o.fill, o.spare = o.spare[:0], batch
		} else if o.settled != nil {
			close(o.settled)
			o.settled = nil
		}
		if starved {
			o.starved = false
			o.stall.Stop()
		}
		o.mu.Unlock()
		if starved {
			o.ready()
		}
		if len(batch) > 0 {
			return batch
		}
		if closed {
			return nil
		}
		<-o.wake
	}
}

// wrote notes that the writer has taken something, or failed, by which what is left
// of the batch is lost.
func (o *output) wrote(left int, err error) {
	o.mu.Lock()
	o.dropping = false
	if o.starved {
		o.stall.Reset(Patience)
	}
	if err != nil && o.err == nil {
		o.err = fmt.Errorf("write the guest's output: %w", err)
		o.dropped += uint64(left + len(o.fill))
		o.fill = o.fill[:0]
	}
	o.mu.Unlock()
	if err != nil {
		o.warn("write", fmt.Errorf("write the guest's output: %w: dropping it from now on", err))
	}
}

// flush waits until every byte taken so far is written.
func (o *output) flush(ctx context.Context) error {
	o.mu.Lock()
	if len(o.fill) == 0 && !o.writing {
		defer o.mu.Unlock()
		return o.err
	}
	if o.settled == nil {
		o.settled = make(chan struct{})
	}
	settled := o.settled
	o.mu.Unlock()
	select {
	case <-settled:
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// close ends the goroutine once it has written what was taken.
func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.stall.Stop()
	signal(o.wake)
}
