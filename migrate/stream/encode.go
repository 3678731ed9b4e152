package stream

import (
	"bytes"
	"hash/crc32"

	"github.com/godwit-vmm/godwit/memory"
)

// finished is the length that the confirmation of kindFinish has.
const finished = 1

// encoder makes frames of items. They gather in a buffer: the guest may change a page
// between its checksum and its way to the network, so that both need a copy, and one
// write of many frames is cheaper than many.
type encoder struct {
	lane *lane
	buf  []byte
	zip  *compressor // nil: never
}

// bufferSize has room for a chunk of which every second page is zero.
const bufferSize = chunkSize + chunkSize/memory.PageSize*headerSize

// copySize is how much is copied at once.
const copySize = 64 << 10

func newEncoder(l *lane, c Compression) encoder {
	return encoder{lane: l, buf: make([]byte, 0, bufferSize), zip: newCompressor(c)}
}

// add makes frames of an item.
func (e *encoder) add(i item) error {
	switch i.kind {
	case kindPages:
		return e.addPages(i.offset, i.pages)
	case kindZero:
		return e.addZero(i.offset, i.number)
	}
	e.lane.asked.Store(i.number)
	if err := e.addHeader(header{kind: i.kind, offset: i.number}); err != nil {
		return err
	}
	return e.flush()
}

// flush has what has gathered written. Meanwhile the next buffer fills.
func (e *encoder) flush() error {
	if len(e.buf) == 0 {
		return nil
	}
	w, err := e.lane.swap(e.buf)
	if err != nil {
		return err
	}
	e.reset(w)
	return nil
}

// reset goes on with another buffer.
func (e *encoder) reset(w written) {
	e.buf = w.buf
	if e.zip != nil && w.bytes > 0 {
		e.zip.gain.wrote(w.bytes, w.took)
	}
}

// room makes sure that n bytes fit.
func (e *encoder) room(n int) error {
	if len(e.buf)+n <= cap(e.buf) {
		return nil
	}
	return e.flush()
}

func (e *encoder) addHeader(h header) error {
	if err := e.room(headerSize); err != nil {
		return err
	}
	e.buf = h.append(e.buf)
	return nil
}

func (e *encoder) addZero(offset, length uint64) error {
	e.lane.zero.Add(length)
	return e.addHeader(header{kind: kindZero, offset: offset, length: length})
}

// addPages makes a frame of each run of pages that are zero, or are not.
func (e *encoder) addPages(offset uint64, p []byte) error {
	for len(p) > 0 {
		n, zero := sameRun(p)
		var err error
		if zero {
			err = e.addZero(offset, uint64(n))
		} else {
			err = e.addRun(offset, p[:n])
		}
		if err != nil {
			return err
		}
		offset, p = offset+uint64(n), p[n:]
	}
	return nil
}

// addRun makes a frame of pages, at most a chunk.
func (e *encoder) addRun(offset uint64, p []byte) error {
	e.lane.pages.Add(uint64(len(p)))
	if err := e.room(headerSize + len(p)); err != nil {
		return err
	}
	h := header{kind: kindPages, offset: offset, length: uint64(len(p)), wire: uint32(len(p))}
	if e.zip != nil {
		packed, err := e.zip.pack(p)
		if err != nil {
			return err
		}
		if packed != nil {
			h.kind, h.wire = kindZstd, uint32(len(packed))
			p = packed
		}
	}
	at := len(e.buf)
	e.buf = e.buf[:at+headerSize]
	for len(p) > 0 {
		// In pieces, so that the checksum finds the copy in the cache.
		n := min(len(p), copySize)
		e.buf = append(e.buf, p[:n]...)
		h.sum = crc32.Update(h.sum, castagnoli(), e.buf[len(e.buf)-n:])
		p = p[n:]
	}
	h.append(e.buf[:at])
	return nil
}

// sameRun is how many bytes from the beginning of p are pages of one sort: zeros, or
// something else.
func sameRun(p []byte) (n int, zero bool) {
	zero = isZero(p[:memory.PageSize])
	for n = memory.PageSize; n < len(p) && isZero(p[n:n+memory.PageSize]) == zero; {
		n += memory.PageSize
	}
	return n, zero
}

// zeroPage is only read.
var zeroPage [memory.PageSize]byte

// isZero compares a page with zeros, which ends at the first difference.
func isZero(page []byte) bool { return bytes.Equal(page, zeroPage[:]) }
