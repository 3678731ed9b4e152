package stream

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/klauspost/compress/zstd"
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
	// piece is what fill has read and not yet written.
	piece []byte
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
	return n, unfinished(err, c.receiver.stall)
}

// unfinished says of a source that was waited for in vain within a frame that it was.
func unfinished(err error, stall time.Duration) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("the source left a frame unfinished for %v: is its machine or the network down? (%w)", stall, err)
	}
	return err
}

// nextHeader reads the header of a frame, of which there has to be one more.
func nextHeader(in io.Reader, buf *[headerSize]byte) (header, error) {
	h, err := readHeader(in, buf)
	if errors.Is(err, io.EOF) {
		err = errors.New("the source closed the connection before it had finished")
	}
	return h, err
}

// run handles frames until the last.
func (c *intake) run() error {
	for {
		c.inside = c.in.Buffered() > 0
		h, err := nextHeader(c.in, &c.header)
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

// readPages reads pages into the memory. The guest does not run before all
// checksums were right.
func (c *intake) readPages(h header) error {
	p, err := c.receiver.find(h.offset, h.length)
	if err != nil {
		return err
	}
	if uint64(h.wire) != h.length {
		return fmt.Errorf("frame %v of %d bytes for %d bytes of memory", h.kind, h.wire, h.length)
	}
	sum, err := c.fill(p)
	if err != nil {
		return fmt.Errorf("frame %v for %#x: %w", h.kind, h.offset, err)
	}
	c.receiver.filled(p)
	return h.compare(sum)
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
