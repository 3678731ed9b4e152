package snapshot

import (
	"encoding/binary"
	"hash/crc32"
)

// pagesPerChunk is how many pages share a checksum.
const pagesPerChunk = ChunkSize / PageSize

// summer makes checksums of chunks from those of their pages. A writer may then
// write pages again and again, in any order, and never reads back what it wrote.
//
// CRC is linear: the checksum of a|b is that of a moved on by len(b) zero bytes,
// XORed with that of b. For pages the move is always the same, a product with a
// 32x32 matrix over GF(2), which is kept as a table for each byte.
type summer struct {
	shift [4][256]uint32
	// zero is the checksum of a page of zeros.
	zero uint32
}

func newSummer() *summer {
	s := new(summer)
	page := make([]byte, PageSize)
	s.zero = checksum(page)
	for bit := range 32 {
		// What PageSize zeros make of a register that has one bit set,
		// without the inversions before and after.
		moved := ^crc32.Update(^(uint32(1) << bit), castagnoli(), page)
		table := &s.shift[bit/8]
		for v := range 256 {
			if v>>(bit%8)&1 == 1 {
				table[v] ^= moved
			}
		}
	}
	return s
}

// add returns the checksum of a|page, given those of a and of the page.
func (s *summer) add(a, page uint32) uint32 {
	return page ^ s.shift[0][byte(a)] ^ s.shift[1][byte(a>>8)] ^ s.shift[2][byte(a>>16)] ^ s.shift[3][a>>24]
}

// chunks makes the entries of memory.sums from the checksums of all pages, each
// XORed with that of a zero page.
func (s *summer) chunks(pages []uint32) []byte {
	entries := make([]byte, 0, (len(pages)+pagesPerChunk-1)/pagesPerChunk*4)
	for len(pages) > 0 {
		n := min(len(pages), pagesPerChunk)
		var crc uint32
		for _, p := range pages[:n] {
			crc = s.add(crc, p^s.zero)
		}
		entries = binary.LittleEndian.AppendUint32(entries, crc)
		pages = pages[n:]
	}
	return entries
}
