package stream

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/klauspost/compress/zstd"
)

// DiskReceiver writes what a DiskSender sends to a disk.
type DiskReceiver struct {
	Target DiskTarget
	// Size of the disk in bytes, at most MaxDisk.
	Size uint64
	// Stall is how long the source may leave a frame unfinished, or not take an answer;
	// 0 is DefaultStall. Between frames it may be silent.
	Stall time.Duration
}

// Serve receives from a connection until the sender finishes, which gives nil: all of the
// disk is durable then. Serve does not close conn.
func (r *DiskReceiver) Serve(ctx context.Context, conn net.Conn) error {
	c := &diskIntake{DiskReceiver: *r, ctx: ctx, conn: conn, block: make([]byte, DiskBlock)}
	if c.Stall == 0 {
		c.Stall = DefaultStall
	}
	c.in = bufio.NewReaderSize(c, readAhead)
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })()
	defer c.close()
	err := c.run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	err = fmt.Errorf("receive a disk: %w", err)
	if conn.SetWriteDeadline(time.Now().Add(min(time.Second, c.Stall))) == nil {
		_, _ = conn.Write(appendFail(nil, err.Error())) // the caller has the error too
	}
	return err
}

// diskIntake is a connection of a DiskReceiver.
type diskIntake struct {
	DiskReceiver
	ctx  context.Context
	conn net.Conn
	in   *bufio.Reader
	// inside is set within a frame, of which the rest has to come in time.
	inside bool
	header [headerSize]byte
	// block is what was read of a frame. What was compressed comes to unpacked.
	block, unpacked []byte
	zip             *zstd.Decoder
}

// Read reads from the connection: for ever between frames, and else within the time that
// a peer has.
func (c *diskIntake) Read(p []byte) (int, error) {
	var deadline time.Time
	if c.inside {
		deadline = time.Now().Add(c.Stall)
	}
	if err := c.conn.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	if err := c.ctx.Err(); err != nil { // its deadline may have been replaced just now
		return 0, err
	}
	n, err := c.conn.Read(p)
	c.inside = c.inside || n > 0
	return n, unfinished(err, c.Stall)
}

// run handles frames until the last.
func (c *diskIntake) run() error {
	for {
		c.inside = c.in.Buffered() > 0
		h, err := nextHeader(c.in, &c.header)
		if err != nil {
			return err
		}
		c.inside = true
		p := c.block[:h.wire]
		if err := readFull(c.in, p); err != nil {
			return fmt.Errorf("frame %v for %#x: %w", h.kind, h.offset, err)
		}
		if err := h.verify(p); err != nil {
			return err
		}
		if err := c.handle(h, p); err != nil {
			return err
		}
		if h.kind == kindFinish {
			return nil
		}
	}
}

func (c *diskIntake) handle(h header, p []byte) error {
	switch h.kind {
	case kindBarrier, kindFinish:
		return c.confirm(h)
	}
	if err := checkRange(h, c.Size); err != nil {
		return err
	}
	switch {
	case h.kind == kindPages && h.wire == uint32(h.length) && h.length <= DiskBlock:
		return c.write(h, p)
	case h.kind == kindZstd && h.length <= DiskBlock:
		return c.unpack(h, p)
	case h.kind == kindZero && h.wire == 0:
		return c.Target.Zero(h.offset, h.length)
	case h.kind == kindHash:
		return c.compare(h, p)
	}
	return fmt.Errorf("frame %v with %d bytes for %d of a disk, which version %d does not have", h.kind, h.wire, h.length, Version)
}

func (c *diskIntake) write(h header, p []byte) error {
	_, err := c.Target.WriteAt(p, int64(h.offset))
	return err
}

func (c *diskIntake) unpack(h header, p []byte) error {
	if c.zip == nil {
		var err error
		if c.zip, err = newDecoder(); err != nil {
			return err
		}
		c.unpacked = make([]byte, 0, DiskBlock)
	}
	got, err := c.zip.DecodeAll(p, c.unpacked[:0])
	if err != nil {
		return fmt.Errorf("%d compressed bytes for the disk at %#x: %w", h.wire, h.offset, err)
	}
	if uint64(len(got)) != h.length {
		return fmt.Errorf("%d compressed bytes for %d of the disk at %#x are %d", h.wire, h.length, h.offset, len(got))
	}
	return c.write(h, got)
}

// compare says which blocks are not those that the source has.
func (c *diskIntake) compare(h header, sums []byte) error {
	blocks := (h.length + DiskBlock - 1) / DiskBlock
	if blocks > maxHashed || uint64(len(sums)) != blocks*hashSize {
		return fmt.Errorf("%d bytes of checksums for %d blocks of a disk: want %d of at most %d blocks", len(sums), blocks, blocks*hashSize, maxHashed)
	}
	var other uint64
	p := make([]byte, DiskBlock)
	for i := range blocks {
		at := i * DiskBlock
		p := p[:min(DiskBlock, h.length-at)]
		if _, err := c.Target.ReadAt(p, int64(h.offset+at)); err != nil {
			return err
		}
		if sum := sha256.Sum256(p); string(sum[:]) != string(sums[i*hashSize:(i+1)*hashSize]) {
			other |= 1 << i
		}
	}
	return c.answer(header{kind: kindDiff, offset: h.offset, length: h.length}, binary.LittleEndian.AppendUint64(nil, other))
}

// confirm answers a barrier.
func (c *diskIntake) confirm(h header) error {
	if h.wire != 0 {
		return fmt.Errorf("frame %v with %d bytes, want none", h.kind, h.wire)
	}
	if err := c.Target.Sync(); err != nil {
		return err
	}
	ack := header{kind: kindAck, offset: h.offset}
	if h.kind == kindFinish {
		ack.length = finished
	}
	return c.answer(ack, nil)
}

func (c *diskIntake) answer(h header, p []byte) error {
	h.wire, h.sum = uint32(len(p)), checksum(p)
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.Stall)); err != nil {
		return err
	}
	if err := c.ctx.Err(); err != nil {
		return err
	}
	_, err := c.conn.Write(append(h.append(nil), p...))
	return err
}

func (c *diskIntake) close() {
	if c.zip != nil {
		c.zip.Close()
	}
}

// readFull fills p.
func readFull(r io.Reader, p []byte) error {
	_, err := io.ReadFull(r, p)
	return noEOF(err)
}
