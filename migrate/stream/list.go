package stream

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/godwit-vmm/godwit/memory"
)

// wordSpan is how much memory a word of a list is about, in bytes.
const wordSpan = 64 * memory.PageSize

// sendList sends the bits of pages, in pieces.
func sendList(w io.Writer, pages []uint64) error {
	const most = maxPayload / 8
	for first := 0; first < len(pages); first += most {
		piece := pages[first:min(first+most, len(pages))]
		frame := make([]byte, headerSize, headerSize+8*len(piece))
		for _, word := range piece {
			frame = binary.LittleEndian.AppendUint64(frame, word)
		}
		header{
			kind: kindList, wire: uint32(8 * len(piece)), offset: uint64(first) * wordSpan,
			length: uint64(len(piece)) * wordSpan, sum: checksum(frame[headerSize:]),
		}.append(frame[:0])
		if _, err := w.Write(frame); err != nil {
			return err
		}
	}
	return nil
}

// readList reads what sendList has sent, of a memory of so many bytes.
func readList(r io.Reader, size uint64) (pageSet, error) {
	pages := newPageSet(size)
	var buf [headerSize]byte
	payload := make([]byte, min(8*len(pages), maxPayload))
	for at := 0; at < len(pages); {
		h, err := readHeader(r, &buf)
		if err != nil {
			return nil, noEOF(err)
		}
		if h.kind == kindFail {
			return nil, readFail(r, h)
		}
		n := int(h.wire / 8)
		if h.kind != kindList || h.wire%8 != 0 || n == 0 || n > len(pages)-at ||
			h.offset != uint64(at)*wordSpan || h.length != uint64(n)*wordSpan {
			return nil, fmt.Errorf("frame %v of %d bytes for %#x in place %d of a list of %d words", h.kind, h.wire, h.offset, at, len(pages))
		}
		p := payload[:h.wire]
		if _, err := io.ReadFull(r, p); err != nil {
			return nil, noEOF(err)
		}
		if err := h.verify(p); err != nil {
			return nil, err
		}
		for ; len(p) > 0; p = p[8:] {
			pages[at] = binary.LittleEndian.Uint64(p)
			at++
		}
	}
	if past := size / memory.PageSize % 64; past != 0 && pages[len(pages)-1]>>past != 0 {
		return nil, fmt.Errorf("a list with pages behind the %d bytes of memory", size)
	}
	return pages, nil
}

// channel is one of the urgent channels. Frames are written by any goroutine, and read by
// one.
type channel struct {
	net.Conn
	stall time.Duration
}

// Write is that of the connection, within the time that a peer has.
func (c channel) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// short has reads end when the peer says nothing for the time that it has.
func (c channel) short() error { return c.SetReadDeadline(time.Now().Add(c.stall)) }

// long has them wait for ever.
func (c channel) long() error { return c.SetReadDeadline(time.Time{}) }

// hangUp ends reads and writes; not Close, which for TLS waits until it has said goodbye.
func (c channel) hangUp() { _ = c.SetDeadline(past) }
