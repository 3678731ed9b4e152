package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
)

// kind says what a frame is. Its four letters are the magic number of the frame too.
type kind uint32

// The kinds.
const (
	kindPages   kind = 'P' | 'A'<<8 | 'G'<<16 | 'E'<<24
	kindZstd    kind = 'Z' | 'S'<<8 | 'T'<<16 | 'D'<<24
	kindZero    kind = 'Z' | 'E'<<8 | 'R'<<16 | 'O'<<24
	kindBarrier kind = 'B' | 'A'<<8 | 'R'<<16 | 'R'<<24
	kindFinish  kind = 'F' | 'I'<<8 | 'N'<<16 | 'I'<<24
	kindAck     kind = 'A' | 'C'<<8 | 'K'<<16 | 'N'<<24
	kindFail    kind = 'F' | 'A'<<8 | 'I'<<16 | 'L'<<24

	// Those of post-copy.
	kindList kind = 'L' | 'I'<<8 | 'S'<<16 | 'T'<<24
	kindWant kind = 'W' | 'A'<<8 | 'N'<<16 | 'T'<<24
	kindDone kind = 'D' | 'O'<<8 | 'N'<<16 | 'E'<<24
)

// String is the four letters of the kind, quoted: a peer chooses them.
func (k kind) String() string {
	return strconv.Quote(string([]byte{byte(k), byte(k >> 8), byte(k >> 16), byte(k >> 24)}))
}

const (
	headerSize = 32
	// maxPayload is the largest number of bytes behind a header.
	maxPayload = 1 << 20
	// maxText is the longest sentence that a peer may say.
	maxText = 512
)

// header is that of a frame; see the package documentation.
type header struct {
	kind   kind
	wire   uint32
	offset uint64
	length uint64
	sum    uint32
}

// append appends the header to p.
func (h header) append(p []byte) []byte {
	start := len(p)
	p = binary.LittleEndian.AppendUint32(p, uint32(h.kind))
	p = binary.LittleEndian.AppendUint32(p, h.wire)
	p = binary.LittleEndian.AppendUint64(p, h.offset)
	p = binary.LittleEndian.AppendUint64(p, h.length)
	p = binary.LittleEndian.AppendUint32(p, h.sum)
	return binary.LittleEndian.AppendUint32(p, checksum(p[start:]))
}

// errCorrupt is wrapped by errors about bytes that changed on the way.
var errCorrupt = errors.New("the bytes changed on the way: see whether the network or a memory of the machines is faulty")

// parseHeader reads a header and bounds the length of what follows.
func parseHeader(p *[headerSize]byte) (header, error) {
	h := header{
		kind:   kind(binary.LittleEndian.Uint32(p[0:])),
		wire:   binary.LittleEndian.Uint32(p[4:]),
		offset: binary.LittleEndian.Uint64(p[8:]),
		length: binary.LittleEndian.Uint64(p[16:]),
		sum:    binary.LittleEndian.Uint32(p[24:]),
	}
	if got, want := checksum(p[:28]), binary.LittleEndian.Uint32(p[28:]); got != want {
		return h, fmt.Errorf("frame %v has a header with checksum %#x, want %#x: %w", h.kind, got, want, errCorrupt)
	}
	if h.wire > maxPayload {
		return h, fmt.Errorf("frame %v of %d bytes: want at most %d", h.kind, h.wire, maxPayload)
	}
	return h, nil
}

// readHeader reads a header, into buf first. It returns io.EOF only for an end before
// the first byte.
func readHeader(r io.Reader, buf *[headerSize]byte) (header, error) {
	if _, err := io.ReadFull(r, buf[:]); err != nil {
		return header{}, err
	}
	return parseHeader(buf)
}

// verify compares the checksum of what came behind a header.
func (h header) verify(payload []byte) error { return h.compare(checksum(payload)) }

func (h header) compare(got uint32) error {
	if got != h.sum {
		return fmt.Errorf("frame %v of %d bytes for %#x has checksum %#x, want %#x: %w", h.kind, h.wire, h.offset, got, h.sum, errCorrupt)
	}
	return nil
}

// appendFail appends the frame that says why the migration cannot go on.
func appendFail(p []byte, text string) []byte {
	text = text[:min(len(text), maxText)]
	p = header{kind: kindFail, wire: uint32(len(text)), sum: checksum([]byte(text))}.append(p)
	return append(p, text...)
}

// readFail reads what the peer says in a frame.
func readFail(r io.Reader, h header) error {
	if h.wire > maxText {
		return fmt.Errorf("the receiver failed with a text of %d bytes: want at most %d", h.wire, maxText)
	}
	text := make([]byte, h.wire)
	if _, err := io.ReadFull(r, text); err != nil {
		return fmt.Errorf("the receiver failed, and its reason was cut off: %w", err)
	}
	if err := h.verify(text); err != nil {
		return fmt.Errorf("the receiver failed for a reason that cannot be read: %w", err)
	}
	return &PeerError{Text: printable(text)}
}

// PeerError is what the peer said was wrong.
type PeerError struct{ Text string }

// Error is the peer's sentence, of at most maxText bytes that are safe to print.
func (e *PeerError) Error() string { return "the receiver says: " + e.Text }

// printable makes a peer's text safe to show on a terminal.
func printable(text []byte) string {
	quoted := strconv.Quote(string(text))
	return quoted[1 : len(quoted)-1]
}

// castagnoli is made at its first use, which spares those who never migrate.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli()) }
