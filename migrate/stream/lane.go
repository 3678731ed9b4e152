package stream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// item is something to be sent: pages, a range of zeros or a barrier.
type item struct {
	kind   kind
	offset uint64
	// number is the length of a range, or the number of a barrier.
	number uint64
	pages  []byte
}

// lane is one connection of a sender: a goroutine that makes frames of items, one that
// writes them, and one that reads what the receiver confirms.
type lane struct {
	sender *Sender
	index  int
	conn   net.Conn
	queue  chan item
	limit  *Limiter
	stall  time.Duration
	frames encoder
	// There are two buffers: while one is written the other fills. Who gives one to full
	// gets the other from free at once.
	full chan []byte
	free chan written

	// asked is the last barrier that was sent. heard is closed when the receiver has
	// nothing more to say.
	asked  atomic.Uint64
	heard  chan struct{}
	closed sync.Once

	pages, zero, wire atomic.Uint64
}

// written is a buffer that was written, of so many bytes in such a time.
type written struct {
	buf   []byte
	bytes int
	took  time.Duration
}

func newLane(s *Sender, index int, conn net.Conn, o SenderOptions) *lane {
	l := &lane{
		sender: s, index: index, conn: conn, limit: o.Limit, stall: o.Stall,
		queue: make(chan item, queueLength), heard: make(chan struct{}),
		full: make(chan []byte), free: make(chan written, 1),
	}
	l.frames = newEncoder(l, o.Compress)
	return l
}

// fail ends the whole sender.
func (l *lane) fail(err error) {
	l.sender.fail(fmt.Errorf("send guest memory over connection %d: %w", l.index, err))
}

// send makes frames of the items, until the sender fails or is closed.
func (l *lane) send() {
	for {
		i, ok := l.next()
		if !ok {
			return
		}
		if err := l.frames.add(i); err != nil {
			l.fail(err)
			return
		}
	}
}

// next waits for an item. While there is none, what has gathered is written.
func (l *lane) next() (item, bool) {
	select {
	case i := <-l.queue:
		return i, true
	default:
	}
	for {
		full := l.full
		if len(l.frames.buf) == 0 {
			full = nil // nothing to write
		}
		select {
		case i := <-l.queue:
			return i, true
		case full <- l.frames.buf:
			l.frames.reset(<-l.free)
		case <-l.sender.failed:
			return item{}, false
		}
	}
}

// swap has a buffer written, and returns the other.
func (l *lane) swap(buf []byte) (written, error) {
	select {
	case l.full <- buf:
		return <-l.free, nil
	case <-l.sender.failed:
		return written{}, ErrClosed
	}
}

// drain writes buffers, until the sender fails or is closed.
func (l *lane) drain() {
	other := written{buf: make([]byte, 0, bufferSize)}
	for {
		select {
		case buf := <-l.full:
			l.free <- other
			start := time.Now()
			if err := l.write(buf); err != nil {
				l.lost(err)
				return
			}
			other = written{buf[:0], len(buf), time.Since(start)}
		case <-l.sender.failed:
			return
		}
	}
}

// lost fails for an error of the connection, but gives the receiver a moment to tell the
// reason for which it may have closed it.
func (l *lane) lost(err error) {
	wait := time.NewTimer(time.Second)
	defer wait.Stop()
	select {
	case <-l.heard:
	case <-wait.C:
	case <-l.sender.failed:
	}
	l.fail(err)
}

// write writes to the connection within the limit.
func (l *lane) write(p []byte) error {
	for len(p) > 0 {
		piece := l.limit.take(l.sender.failed, len(p))
		if err := l.conn.SetWriteDeadline(time.Now().Add(l.stall)); err != nil {
			return err
		}
		select {
		case <-l.sender.failed: // its deadline may have been replaced just now
			return ErrClosed
		default:
		}
		n, err := l.conn.Write(p[:piece])
		l.wire.Add(uint64(n))
		if err != nil {
			return l.stalled(err)
		}
		p = p[n:]
	}
	return nil
}

// stalled says what a timeout means.
func (l *lane) stalled(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("the receiver has taken nothing for %v: is its machine or the network down, or slower than 1 MiB in that time? (%w)", l.stall, err)
	}
	return err
}

// listen reads what the receiver says.
func (l *lane) listen() {
	err := l.confirmations(l.conn)
	if err != nil {
		l.fail(err)
	}
	close(l.heard)
}

// confirmations reads until the receiver has confirmed the end.
func (l *lane) confirmations(r io.Reader) error {
	var buf [headerSize]byte
	for last := uint64(0); ; last++ {
		h, err := readHeader(r, &buf)
		if errors.Is(err, io.EOF) {
			return errors.New("the receiver closed the connection")
		}
		if err != nil {
			return fmt.Errorf("read what the receiver confirms: %w", err)
		}
		switch {
		case h.kind == kindFail:
			return readFail(r, h)
		case h.kind != kindAck || h.wire != 0 || h.length > 1:
			return fmt.Errorf("the receiver sent a frame %v of %d bytes, want %v", h.kind, h.wire, kindAck)
		case h.offset != last+1 || h.offset > l.asked.Load():
			return fmt.Errorf("the receiver confirmed barrier %d after %d, of %d", h.offset, last, l.asked.Load())
		}
		l.sender.confirmed <- h.offset // has room for a barrier of each lane
		if h.length == finished {
			return nil
		}
	}
}

// close closes the connection, once.
func (l *lane) close() error {
	var err error
	l.closed.Do(func() { err = l.conn.Close() })
	return err
}
