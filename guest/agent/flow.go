package agent

import (
	"bytes"
	"fmt"
	"io"
	"sync"
)

// windowSize is how many bytes of one stream may be under way: sent, and not
// yet taken by whoever reads the stream. A slow reader thereby holds up its
// own stream only, and costs the receiver no more memory than this.
const windowSize = 256 << 10

// window is what the sender of a stream may still send.
type window struct {
	mu     sync.Mutex
	change sync.Cond
	credit int
	closed bool
}

func newWindow() *window {
	w := &window{credit: windowSize}
	w.change.L = &w.mu
	return w
}

// take waits for credit and takes up to limit bytes of it. It gives 0 when the
// stream has been closed.
func (w *window) take(limit int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.credit == 0 && !w.closed {
		w.change.Wait()
	}
	if w.closed {
		return 0
	}
	n := min(limit, w.credit)
	w.credit -= n
	return n
}

// grant adds credit from the peer.
func (w *window) grant(n uint32) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if int64(w.credit)+int64(n) > windowSize {
		return fmt.Errorf("%w: credit of %d bytes on top of %d", ErrCorrupt, n, w.credit)
	}
	w.credit += int(n)
	w.change.Broadcast()
	return nil
}

func (w *window) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.change.Broadcast()
}

// inbox holds what was received of a stream and not read yet.
type inbox struct {
	mu     sync.Mutex
	change sync.Cond
	data   bytes.Buffer
	ended  bool
	// unread counts what the peer has no credit for yet: what lies in
	// data, and what was read since the last credit.
	unread int
	// credit returns n bytes of credit to the peer.
	credit func(n int) error
}

func newInbox(credit func(int) error) *inbox {
	b := &inbox{credit: credit}
	b.change.L = &b.mu
	return b
}

// push stores received bytes. It never blocks; a peer that sends more than it
// has credit for breaks the protocol.
func (b *inbox) push(p []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unread += len(p)
	if b.unread > windowSize {
		return fmt.Errorf("%w: more data than there was credit for", ErrCorrupt)
	}
	if !b.ended {
		b.data.Write(p)
	}
	b.change.Broadcast()
	return nil
}

// end says that nothing more comes. What is there can still be read.
func (b *inbox) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	b.change.Broadcast()
}

// discard drops what is there and what may still come.
func (b *inbox) discard() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data.Reset()
	b.ended = true
	b.change.Broadcast()
}

// Read waits for bytes of the stream and returns credit for those it takes.
func (b *inbox) Read(p []byte) (int, error) {
	n, credit, err := b.read(p)
	if credit > 0 {
		// Outside of the lock: it may wait for the line, which must
		// not stop push.
		if err := b.credit(credit); err != nil {
			return n, err
		}
	}
	return n, err
}

func (b *inbox) read(p []byte) (n, credit int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.data.Len() == 0 && !b.ended {
		b.change.Wait()
	}
	if b.data.Len() == 0 {
		return 0, 0, io.EOF
	}
	n, _ = b.data.Read(p)
	// Credit goes back in large pieces, but before the peer runs dry.
	if taken := b.unread - b.data.Len(); taken >= windowSize/4 {
		b.unread = b.data.Len()
		credit = taken
	}
	return n, credit, nil
}

func (w *window) isClosed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed
}
