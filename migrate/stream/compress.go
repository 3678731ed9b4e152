package stream

import (
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Compression says whether pages are compressed.
type Compression int

// The values. Auto compresses while that gets more memory over the connection in the
// same time, which is measured.
const (
	None Compression = iota
	Zstd
	Auto
)

// compressor packs pages for one connection.
type compressor struct {
	auto bool
	gain gain
	// zip is made when it is used first. stable is then a copy of pages that do not
	// stand still, and packed what became of it.
	zip            *zstd.Encoder
	stable, packed []byte
}

func newCompressor(c Compression) *compressor {
	if c == None {
		return nil
	}
	return &compressor{auto: c == Auto}
}

func (c *compressor) start() error {
	zip, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(chunkSize), zstd.WithEncoderCRC(false))
	if err != nil {
		return fmt.Errorf("compress guest memory: %w", err)
	}
	c.zip, c.stable, c.packed = zip, make([]byte, chunkSize), make([]byte, 0, zip.MaxEncodedSize(chunkSize))
	return nil
}

// pack compresses pages, which may change meanwhile, at most a chunk. It returns nil
// where they go better as they are, and else what is valid until the next call.
func (c *compressor) pack(p []byte) ([]byte, error) {
	if c.auto && !c.gain.worthwhile() {
		return nil, nil
	}
	if c.zip == nil {
		if err := c.start(); err != nil {
			return nil, err
		}
	}
	start := time.Now()
	n := copy(c.stable, p)
	c.packed = c.zip.EncodeAll(c.stable[:n], c.packed[:0])
	c.gain.packed(n, len(c.packed), time.Since(start))
	if len(c.packed) > n-n/16 {
		return nil, nil // not worth the receiver's time
	}
	return c.packed, nil
}

// gain measures whether compression gains time. A connection takes a byte of pages in wire
// seconds; packed, in ratio*wire, or in zip, if packing takes longer, for it works ahead.
// All are averages that follow what changes.
type gain struct {
	// wire and zip are seconds a byte, and ratio bytes after for a byte before.
	wire, zip, ratio float64
	measured         bool
	// asked counts the decisions since compression was last tried.
	asked int
}

const (
	// retry is after how many decisions against it compression is tried again.
	retry = 64
	// weight is that of a new measurement in an average.
	weight = 1.0 / 8
)

// worthwhile decides for the next pages.
func (g *gain) worthwhile() bool {
	if !g.measured || max(g.zip, g.ratio*g.wire) < g.wire || g.asked >= retry {
		g.asked = 0
		return true
	}
	g.asked++
	return false
}

// packed notes that compression made after bytes of before.
func (g *gain) packed(before, after int, took time.Duration) {
	zip, ratio := took.Seconds()/float64(before), float64(after)/float64(before)
	if !g.measured {
		g.zip, g.ratio, g.measured = zip, ratio, true
	}
	g.zip += weight * (zip - g.zip)
	g.ratio += weight * (ratio - g.ratio)
}

// wrote notes how long a write took.
func (g *gain) wrote(n int, took time.Duration) {
	g.wire += weight * (took.Seconds()/float64(n) - g.wire)
}

// readPacked reads compressed pages and unpacks them into the memory. Their checksum is
// that of what was sent: only what came whole is unpacked.
func (c *intake) readPacked(h header) error {
	p, err := c.receiver.find(h.offset, h.length)
	if err != nil {
		return err
	}
	if h.wire == 0 || uint64(h.wire) >= h.length {
		return fmt.Errorf("%d compressed bytes for %d bytes of memory", h.wire, h.length)
	}
	if c.zip == nil {
		if err := c.startZip(); err != nil {
			return err
		}
	}
	packed := c.packed[:h.wire]
	if _, err := io.ReadFull(c.in, packed); err != nil {
		return fmt.Errorf("frame %v for %#x: %w", h.kind, h.offset, noEOF(err))
	}
	if err := h.verify(packed); err != nil {
		return err
	}
	// Not into the memory: the decoder may write some bytes more than it returns.
	pages, err := c.zip.DecodeAll(packed, c.unpacked[:0])
	if err != nil {
		return fmt.Errorf("%d compressed bytes for memory at %#x: %w", h.wire, h.offset, err)
	}
	if len(pages) != len(p.mem) {
		return fmt.Errorf("%d compressed bytes for %d bytes of memory at %#x are %d", h.wire, h.length, h.offset, len(pages))
	}
	if err := c.receiver.put(p, pages); err != nil {
		return err
	}
	c.receiver.filled(p)
	return nil
}

// startZip makes what compressed frames need.
func (c *intake) startZip() error {
	zip, err := newDecoder()
	if err != nil {
		return err
	}
	c.zip, c.packed, c.unpacked = zip, make([]byte, maxPayload), make([]byte, 0, maxPayload)
	return nil
}

// newDecoder makes what unpacks compressed frames, and bounds what they unpack to.
func newDecoder() (*zstd.Decoder, error) {
	zip, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(maxPayload), zstd.WithDecoderMaxWindow(maxPayload))
	if err != nil {
		return nil, fmt.Errorf("uncompress what comes: %w", err)
	}
	return zip, nil
}

// close frees what the connection had.
func (c *intake) close() {
	if c.zip != nil {
		c.zip.Close()
	}
}
