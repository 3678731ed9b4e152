package stream

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// DiskSender sends the contents of one disk to a DiskReceiver. Close and Stats are for
// any goroutine, all else for one at a time. After an error only Close is left.
type DiskSender struct {
	conn  net.Conn
	limit *Limiter
	stall time.Duration
	zip   *compressor // nil: never
	// block is what the caller fills, and frames what is not written yet.
	block, frames []byte
	barriers      uint64

	closed     chan struct{}
	closing    sync.Once
	data, zero atomic.Uint64
	wire, same atomic.Uint64
}

// framesSize has room for a block of which every second page is zero.
const framesSize = bufferSize

// NewDiskSender makes a sender over a connection to a DiskReceiver, which is the sender's
// from now on.
func NewDiskSender(conn net.Conn, o SenderOptions) *DiskSender {
	if o.Stall == 0 {
		o.Stall = DefaultStall
	}
	return &DiskSender{
		conn: conn, limit: o.Limit, stall: o.Stall, zip: newCompressor(o.Compress),
		block: make([]byte, DiskBlock), frames: make([]byte, 0, framesSize), closed: make(chan struct{}),
	}
}

// Block is where the caller puts what it sends next, DiskBlock bytes.
func (s *DiskSender) Block() []byte { return s.block }

// Send sends the first n bytes of Block, which are those of the disk from offset on:
// sectors, at least one. Zeros in it go as ranges.
func (s *DiskSender) Send(offset uint64, n int) error {
	for p := s.block[:n]; len(p) > 0; {
		run, zero := sameSort(p)
		if zero {
			if err := s.Zero(offset, uint64(run)); err != nil {
				return err
			}
		} else if err := s.send(offset, p[:run]); err != nil {
			return err
		}
		p, offset = p[run:], offset+uint64(run)
	}
	return s.flush()
}

func (s *DiskSender) send(offset uint64, p []byte) error {
	h := header{kind: kindPages, offset: offset, length: uint64(len(p))}
	s.data.Add(h.length)
	if s.zip != nil {
		packed, err := s.zip.pack(p)
		if err != nil {
			return err
		}
		if packed != nil {
			h.kind, p = kindZstd, packed
		}
	}
	return s.add(h, p)
}

// Zero says that the length bytes from offset on are zeros, whatever was sent before. It
// goes with the next block or barrier.
func (s *DiskSender) Zero(offset, length uint64) error {
	s.zero.Add(length)
	return s.add(header{kind: kindZero, offset: offset, length: length}, nil)
}

// add makes a frame.
func (s *DiskSender) add(h header, p []byte) error {
	if headerSize+len(p) > cap(s.frames)-len(s.frames) {
		if err := s.flush(); err != nil {
			return err
		}
	}
	h.wire, h.sum = uint32(len(p)), crc32.Checksum(p, castagnoli())
	s.frames = append(h.append(s.frames), p...)
	return nil
}

// flush writes what has gathered, within the limit.
func (s *DiskSender) flush() error {
	p := s.frames
	s.frames = s.frames[:0]
	start, size := time.Now(), len(p)
	for len(p) > 0 {
		piece := s.limit.take(s.closed, len(p))
		if err := s.conn.SetWriteDeadline(time.Now().Add(s.stall)); err != nil {
			return s.failed(err)
		}
		select {
		case <-s.closed: // its deadline may have been replaced just now
			return ErrClosed
		default:
		}
		n, err := s.conn.Write(p[:piece])
		s.wire.Add(uint64(n))
		if err != nil {
			return s.failed(err)
		}
		p = p[n:]
	}
	if s.zip != nil && size > 0 {
		s.zip.gain.wrote(size, time.Since(start))
	}
	return nil
}

// failed is the error of a write, or what the receiver says was the reason for it.
func (s *DiskSender) failed(err error) error {
	select {
	case <-s.closed:
		return ErrClosed
	default:
	}
	if s.conn.SetReadDeadline(time.Now().Add(time.Second)) == nil {
		var peer *PeerError
		if _, _, e := s.read(nil); errors.As(e, &peer) {
			err = peer
		}
	}
	return fmt.Errorf("send a disk: %w", err)
}

// Barrier returns when all that was given before is durable at the destination. When the
// context ends before, the sender is broken.
func (s *DiskSender) Barrier(ctx context.Context) error { return s.confirm(ctx, kindBarrier, 0) }

// Finish is Barrier, and the end of the stream. Nothing may be sent afterwards.
func (s *DiskSender) Finish(ctx context.Context) error {
	return s.confirm(ctx, kindFinish, finished)
}

func (s *DiskSender) confirm(ctx context.Context, k kind, length uint64) error {
	s.barriers++
	h, _, err := s.ask(ctx, header{kind: k, offset: s.barriers}, nil, nil)
	if err == nil && (h.kind != kindAck || h.wire != 0 || h.offset != s.barriers || h.length != length) {
		err = fmt.Errorf("the receiver of a disk answered %v %d, %d to barrier %d", h.kind, h.offset, h.length, s.barriers)
	}
	return err
}

// Same finds out which blocks of the disk the destination has already. read reads the
// length bytes from offset, which are at most DiskBlock*64; differs is called for each
// DiskBlock of them that is another one there.
func (s *DiskSender) Same(ctx context.Context, offset, length uint64, read func(p []byte, offset uint64) error, differs func(offset, length uint64) error) error {
	var sums []byte
	block := func(at uint64) uint64 { return min(DiskBlock, length-at) }
	for at := uint64(0); at < length; at += DiskBlock {
		p := s.block[:block(at)]
		if err := read(p, offset+at); err != nil {
			return err
		}
		sum := sha256.Sum256(p)
		sums = append(sums, sum[:]...)
	}
	var answer [8]byte
	h, n, err := s.ask(ctx, header{kind: kindHash, offset: offset, length: length}, sums, answer[:])
	if err != nil {
		return err
	}
	if h.kind != kindDiff || n != len(answer) || h.offset != offset || h.length != length {
		return fmt.Errorf("the receiver of a disk answered %v of %d bytes for %#x to a question about %#x", h.kind, n, h.offset, offset)
	}
	other := binary.LittleEndian.Uint64(answer[:])
	for at := uint64(0); at < length; at += DiskBlock {
		if other>>(at/DiskBlock)&1 == 0 {
			s.same.Add(block(at))
		} else if err := differs(offset+at, block(at)); err != nil {
			return err
		}
	}
	return nil
}

// ask sends a frame and reads the answer to it.
func (s *DiskSender) ask(ctx context.Context, h header, p, answer []byte) (header, int, error) {
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	err := s.add(h, p)
	if err == nil {
		err = s.flush()
	}
	if err == nil {
		err = s.conn.SetReadDeadline(time.Time{})
	}
	var got header
	var n int
	if err == nil {
		got, n, err = s.read(answer)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return got, n, err
}

// read reads what the receiver says, which is at most len(p) bytes.
func (s *DiskSender) read(p []byte) (header, int, error) {
	var buf [headerSize]byte
	h, err := readHeader(s.conn, &buf)
	switch {
	case err != nil:
		return h, 0, fmt.Errorf("hear from the receiver of a disk: %w", noEOF(err))
	case h.kind == kindFail:
		return h, 0, readFail(s.conn, h)
	case int(h.wire) > len(p):
		return h, 0, fmt.Errorf("the receiver of a disk sent a frame %v of %d bytes: want at most %d", h.kind, h.wire, len(p))
	}
	p = p[:h.wire]
	if err := readFull(s.conn, p); err != nil {
		return h, 0, fmt.Errorf("hear from the receiver of a disk: %w", err)
	}
	return h, len(p), h.verify(p)
}

// Close ends all, also what is under way.
func (s *DiskSender) Close() error {
	var err error
	s.closing.Do(func() {
		close(s.closed)
		_ = s.conn.SetDeadline(past)
		err = s.conn.Close()
	})
	return err
}

// DiskStats counts bytes of a disk.
type DiskStats struct {
	// Data went as contents, Zero as ranges of zeros, and Same was there already.
	Data uint64 `json:"data"`
	Zero uint64 `json:"zero"`
	Same uint64 `json:"same"`
	// Wire is what the connection carried, without TLS and below.
	Wire uint64 `json:"wire"`
}

// Stats says what has been sent until now.
func (s *DiskSender) Stats() DiskStats {
	return DiskStats{Data: s.data.Load(), Zero: s.zero.Load(), Same: s.same.Load(), Wire: s.wire.Load()}
}
