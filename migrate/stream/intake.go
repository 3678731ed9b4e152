package stream

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// readAhead is how many bytes are read with a header: enough for some frames of single
// pages, little to copy of a large one, most of which goes straight into the memory.
const readAhead = 64 << 10

// intake is one connection of a receiver.
type intake struct {
	receiver *Receiver
	conn     net.Conn
	in       *bufio.Reader
	// inside is set within a frame, of which the rest has to come in time.
	inside bool
	header [headerSize]byte
	// zip is made for the first compressed frame; packed is what was read of one, and
	// unpacked what became of it.
	zip              *zstd.Decoder
	packed, unpacked []byte
}

func newIntake(r *Receiver, conn net.Conn) *intake {
	c := &intake{receiver: r, conn: conn}
	c.in = bufio.NewReaderSize(c, readAhead)
	return c
}

// Read reads from the connection: for ever between frames, and else within the time
// that a peer has.
func (c *intake) Read(p []byte) (int, error) {
	var deadline time.Time
	if c.inside {
		deadline = time.Now().Add(c.receiver.stall)
	}
	if err := c.conn.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	if err := c.receiver.broken.Err(); err != nil { // its deadline may have been replaced just now
		return 0, err
	}
	n, err := c.conn.Read(p)
	c.receiver.wire.Add(uint64(n))
	c.inside = c.inside || n > 0
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		err = fmt.Errorf("the source left a frame unfinished for %v: is its machine or the network down? (%w)", c.receiver.stall, err)
	}
	return n, err
}

// run handles frames until the last.
func (c *intake) run() error {
	for {
		c.inside = c.in.Buffered() > 0
		h, err := readHeader(c.in, &c.header)
		if errors.Is(err, io.EOF) {
			return errors.New("the source closed the connection before it had finished")
		}
		if err != nil {
			return err
		}
		c.inside = true
		if err := c.handle(h); err != nil {
			return err
		}
		if h.kind == kindFinish {
			return nil
		}
	}
}

func (c *intake) handle(h header) error {
	switch h.kind {
	case kindPages:
		return c.readPages(h)
	case kindZstd:
		return c.readPacked(h)
	}
	if h.wire != 0 {
		return fmt.Errorf("frame %v with %d bytes, want none", h.kind, h.wire)
	}
	switch h.kind {
	case kindZero:
		return c.receiver.clear(h.offset, h.length)
	case kindBarrier:
		return c.confirm(header{kind: kindAck, offset: h.offset})
	case kindFinish:
		return c.confirm(header{kind: kindAck, offset: h.offset, length: finished})
	}
	return fmt.Errorf("frame of kind %v, which version %d does not have", h.kind, Version)
}

// readPages reads pages straight into the memory. The guest does not run before all
// checksums were right.
func (c *intake) readPages(h header) error {
	p, err := c.receiver.find(h.offset, h.length)
	if err != nil {
		return err
	}
	if uint64(h.wire) != h.length {
		return fmt.Errorf("frame %v of %d bytes for %d bytes of memory", h.kind, h.wire, h.length)
	}
	if err := c.receiver.populate(p); err != nil {
		return err
	}
	var sum uint32
	for rest := p.mem; len(rest) > 0; {
		n, err := c.in.Read(rest)
		if err != nil {
			return fmt.Errorf("frame %v for %#x: %w", h.kind, h.offset, noEOF(err))
		}
		sum = crc32.Update(sum, castagnoli(), rest[:n]) // while it is in the cache
		rest = rest[n:]
	}
	c.receiver.filled(p)
	return h.compare(sum)
}

// populate has the host provide memory that was not used yet, which costs less in one
// piece than fault by fault, and fails here when there is none, not with a signal.
func (r *Receiver) populate(p place) error {
	if r.content.has(p.first, p.pages) {
		return nil
	}
	// Before there is content: whoever clears the pages has to know of it.
	r.content.add(p.first, p.pages)
	err := unix.Madvise(p.mem, unix.MADV_POPULATE_WRITE)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
		return nil // EINVAL: Linux before 5.14; the faults do it
	}
	return fmt.Errorf("the host has no memory for %d bytes of the guest at %#x: free some, or migrate to another host: %w", len(p.mem), uint64(p.gpa), err)
}

// confirm answers a barrier.
func (c *intake) confirm(h header) error {
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.receiver.stall)); err != nil {
		return err
	}
	var buf [headerSize]byte
	_, err := c.conn.Write(h.append(buf[:0]))
	return err
}

// noEOF makes an end of the connection where there should be none an error like others.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
