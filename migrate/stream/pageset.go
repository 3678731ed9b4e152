package stream

import (
	"math/bits"
	"sync/atomic"

	"github.com/godwit-vmm/godwit/memory"
)

// pageSet is a set of pages; any goroutine may change it.
type pageSet []uint64

func newPageSet(size uint64) pageSet { return make(pageSet, (size/memory.PageSize+63)/64) }

// words calls f with each word that has bits of the n pages from first, and the mask
// of these bits.
func (s pageSet) words(first, n uint64, f func(word *uint64, mask uint64)) {
	for n > 0 {
		bit := first % 64
		run := min(64-bit, n)
		f(&s[first/64], ^uint64(0)>>(64-run)<<bit)
		first, n = first+run, n-run
	}
}

func (s pageSet) add(first, n uint64) {
	s.words(first, n, func(word *uint64, mask uint64) { atomic.OrUint64(word, mask) })
}

func (s pageSet) remove(first, n uint64) {
	s.words(first, n, func(word *uint64, mask uint64) { atomic.AndUint64(word, ^mask) })
}

// take removes a page, and tells whether it was in the set: only one of those who take
// it at the same time hears that.
func (s pageSet) take(page uint64) bool {
	mask := uint64(1) << (page % 64)
	return atomic.AndUint64(&s[page/64], ^mask)&mask != 0
}

// count is the number of pages.
func (s pageSet) count() uint64 {
	n := 0
	for i := range s {
		n += bits.OnesCount64(atomic.LoadUint64(&s[i]))
	}
	return uint64(n)
}

// has tells whether all of the n pages from first are in the set.
func (s pageSet) has(first, n uint64) bool {
	all := true
	s.words(first, n, func(word *uint64, mask uint64) { all = all && atomic.LoadUint64(word)&mask == mask })
	return all
}

// next finds the first run of pages of the set among those from at to end; n is 0 if
// there is none.
func (s pageSet) next(at, end uint64) (first, n uint64) {
	for at < end {
		w := atomic.LoadUint64(&s[at/64]) >> (at % 64)
		if w != 0 {
			at += uint64(bits.TrailingZeros64(w))
			break
		}
		at = (at/64 + 1) * 64
	}
	first = at
	for at < end {
		w := ^atomic.LoadUint64(&s[at/64]) >> (at % 64)
		run := min(uint64(bits.TrailingZeros64(w)), 64-at%64)
		at += run
		if run == 0 || at%64 != 0 {
			break
		}
	}
	return first, max(first, min(at, end)) - first
}

// copied is the set at this moment, in the layout of the KVM dirty log.
func (s pageSet) copied() []uint64 {
	words := make([]uint64, len(s))
	for i := range s {
		words[i] = atomic.LoadUint64(&s[i])
	}
	return words
}
