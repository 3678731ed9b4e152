package balloon

import "github.com/godwit-vmm/godwit/memory"

// pageSet has a bit for each page of the guest, numbered by memfd offset as in
// memory.Guest.Dirty.
type pageSet struct {
	regions []memory.Region
	bits    []uint64
	count   uint64
}

func newPageSet(mem *memory.Guest) pageSet {
	return pageSet{regions: mem.Regions(), bits: make([]uint64, (mem.Size()/PageSize+63)/64)}
}

// index is the bit of the page at a guest address, and whether it is RAM.
func (s *pageSet) index(gpa memory.GPA) (uint64, bool) {
	for i := range s.regions {
		if r := &s.regions[i]; r.Contains(gpa, PageSize) {
			return (r.Offset + uint64(gpa-r.Start)) / PageSize, true
		}
	}
	return 0, false
}

func (s *pageSet) set(page uint64) {
	if mask := uint64(1) << (page % 64); s.bits[page/64]&mask == 0 {
		s.bits[page/64] |= mask
		s.count++
	}
}

func (s *pageSet) clear(page uint64) {
	if mask := uint64(1) << (page % 64); s.bits[page/64]&mask != 0 {
		s.bits[page/64] &^= mask
		s.count--
	}
}

// hasAll tells whether all of the n pages from first are in the set. Both are
// multiples of 64.
func (s *pageSet) hasAll(first, n uint64) bool {
	for _, word := range s.bits[first/64 : (first+n)/64] {
		if word != ^uint64(0) {
			return false
		}
	}
	return true
}

func (s *pageSet) clearAll() {
	clear(s.bits)
	s.count = 0
}

func (s *pageSet) copyBits() []uint64 { return append([]uint64(nil), s.bits...) }
