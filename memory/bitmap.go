package memory

import (
	"math/bits"
	"sync/atomic"
)

// Bitmap has one bit for each page of a guest. Setting and draining bits may
// happen on any goroutine at the same time; a bit that is set while a drain
// runs is either returned by that drain or left for the next, never lost.
type Bitmap struct {
	words []uint64
	pages uint64
}

// NewBitmap makes a bitmap of the given number of pages, all clear.
func NewBitmap(pages uint64) *Bitmap {
	return &Bitmap{words: make([]uint64, (pages+63)/64), pages: pages}
}

// Pages is the number of bits.
func (b *Bitmap) Pages() uint64 { return b.pages }

// Set sets the bits of n pages from first. Pages past the end are ignored.
func (b *Bitmap) Set(first, n uint64) {
	if first >= b.pages {
		return
	}
	n = min(n, b.pages-first)
	for n > 0 {
		word, bit := first/64, first%64
		run := min(64-bit, n)
		mask := ^uint64(0) >> (64 - run) << bit
		// The plain load keeps a page that is written again and again
		// from bouncing its cache line between processors.
		if atomic.LoadUint64(&b.words[word])&mask != mask {
			atomic.OrUint64(&b.words[word], mask)
		}
		first += run
		n -= run
	}
}

// Test tells whether the bit of a page is set.
func (b *Bitmap) Test(page uint64) bool {
	return page < b.pages && atomic.LoadUint64(&b.words[page/64])>>(page%64)&1 == 1
}

// Count is the number of set bits.
func (b *Bitmap) Count() uint64 {
	var n uint64
	for i := range b.words {
		n += uint64(bits.OnesCount64(atomic.LoadUint64(&b.words[i])))
	}
	return n
}

// Drain clears the bitmap and ORs what was set into dst, whose layout is that
// of the KVM dirty log: bit i%64 of word i/64 stands for page i. dst may be
// shorter or longer than the bitmap; bits beyond dst stay set.
func (b *Bitmap) Drain(dst []uint64) {
	for i := range min(len(b.words), len(dst)) {
		if atomic.LoadUint64(&b.words[i]) != 0 {
			dst[i] |= atomic.SwapUint64(&b.words[i], 0)
		}
	}
}
