package snapshot

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	sumsMagic  = "godwitSU"
	pagesMagic = "godwitPG"
)

// table is a file with an entry for each unit of memory: memory.sums with a
// uint32 for each chunk, or memory.pages with a bit for each page.
type table struct {
	magic string
	unit  uint32
	id    id
	size  uint64 // of the memory file
}

// entries is how many units the memory has.
func (t table) entries() uint64 { return (t.size + uint64(t.unit) - 1) / uint64(t.unit) }

// bytes is the size of all entries.
func (t table) bytes() uint64 {
	if t.magic == pagesMagic {
		return (t.entries() + 63) / 64 * 8
	}
	return t.entries() * 4
}

// fileSize is the size of the whole file.
func (t table) fileSize() int64 { return int64(headerSize + t.bytes()) }

// write writes the file.
func (t table) write(w io.Writer, entries []byte) error {
	var h [headerSize]byte
	putHeader(h[:], t.magic, t.id)
	binary.LittleEndian.PutUint32(h[12:], t.unit)
	binary.LittleEndian.PutUint64(h[32:], t.size)
	binary.LittleEndian.PutUint64(h[40:], t.entries())
	binary.LittleEndian.PutUint32(h[56:], checksum(entries))
	sealHeader(h[:])
	if _, err := w.Write(h[:]); err != nil {
		return err
	}
	_, err := w.Write(entries)
	return err
}

// check compares a header with what the snapshot's other files want of it, and
// returns the checksum of the entries.
func (t table) check(h []byte) (entries uint32, err error) {
	if err := checkHeader(h, t.magic); err != nil {
		return 0, err
	}
	if err := checkSeal(h[:headerSize]); err != nil {
		return 0, err
	}
	if found := id(h[headerID:]); found != t.id {
		return 0, fmt.Errorf("%w: it belongs to snapshot %v, not to %v: files of two snapshots were mixed", ErrDamaged, found, t.id)
	}
	for _, f := range []struct {
		what        string
		found, want uint64
	}{
		{"size of a unit", uint64(binary.LittleEndian.Uint32(h[12:])), uint64(t.unit)},
		{"size of the memory", binary.LittleEndian.Uint64(h[32:]), t.size},
		{"number of entries", binary.LittleEndian.Uint64(h[40:]), t.entries()},
		{"unused part of the header", binary.LittleEndian.Uint64(h[48:]), 0},
	} {
		if f.found != f.want {
			return 0, fmt.Errorf("%w: %s is %d, want %d", ErrDamaged, f.what, f.found, f.want)
		}
	}
	return binary.LittleEndian.Uint32(h[56:]), nil
}

// readBuffer is how much of a table is read at a time.
const readBuffer = 64 << 10

// read checks the header and gives the entries to take, piece by piece, in whole
// words. They are not to be trusted unless the error is nil. The file has fileSize
// bytes.
func (t table) read(f io.ReaderAt, take func(p []byte)) error {
	var h [headerSize]byte
	if _, err := f.ReadAt(h[:], 0); err != nil {
		return err
	}
	want, err := t.check(h[:])
	if err != nil {
		return err
	}
	var got uint32
	buf := make([]byte, min(t.bytes(), readBuffer))
	for offset := uint64(0); offset < t.bytes(); {
		p := buf[:min(t.bytes()-offset, readBuffer)]
		if _, err := f.ReadAt(p, int64(headerSize+offset)); err != nil {
			return err
		}
		got = crc32.Update(got, castagnoli(), p)
		take(p)
		offset += uint64(len(p))
	}
	if got != want {
		return fmt.Errorf("%w: checksum of the entries is %#08x, want %#08x", ErrDamaged, got, want)
	}
	return nil
}
