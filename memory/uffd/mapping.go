package uffd

import (
	"errors"
	"fmt"

	"github.com/godwit-vmm/godwit/memory"
)

// Mapping is a piece of guest memory: Size bytes, which are those from Offset on and lie
// at the address Addr of a process. All are multiples of PageSize, that of the host's
// pages in bytes.
type Mapping struct {
	Addr, Size, Offset, PageSize uint64
}

// Of are the mappings of a guest's memory in this process.
func Of(g *memory.Guest) []Mapping {
	var mappings []Mapping
	for _, r := range g.Regions() {
		mappings = append(mappings, Mapping{addressOf(r.Mem), r.Size, r.Offset, g.HostPageSize()})
	}
	return mappings
}

// The limits of what a peer's mappings may be.
const (
	maxMappings = 64
	maxPageSize = 1 << 30
)

// check checks mappings, which may be a peer's, and returns how large the memory is that
// they are of, and what pages it has.
func check(mappings []Mapping) (size, pageSize uint64, err error) {
	if len(mappings) == 0 || len(mappings) > maxMappings {
		return 0, 0, fmt.Errorf("%d mappings of guest memory: want 1 to %d", len(mappings), maxMappings)
	}
	pageSize = mappings[0].PageSize
	if pageSize < memory.PageSize || pageSize > maxPageSize || pageSize&(pageSize-1) != 0 {
		return 0, 0, fmt.Errorf("host pages of %d bytes: want a power of two from %d to %d", pageSize, memory.PageSize, maxPageSize)
	}
	for i, m := range mappings {
		switch {
		case m.PageSize != pageSize:
			err = fmt.Errorf("pages of %d bytes, and of %d in another", m.PageSize, pageSize)
		case (m.Addr|m.Size|m.Offset)%pageSize != 0:
			err = fmt.Errorf("not whole pages of %d bytes", pageSize)
		case m.Size == 0 || m.Size > memory.MaxSize || m.Offset > memory.MaxSize-m.Size || m.Addr+m.Size < m.Addr:
			err = fmt.Errorf("want at most %d bytes in all", memory.MaxSize)
		}
		for _, other := range mappings[:i] {
			if overlap(m.Offset, other.Offset, m.Size, other.Size) || overlap(m.Addr, other.Addr, m.Size, other.Size) {
				err = errors.New("it overlaps another one")
			}
		}
		if err != nil {
			return 0, 0, fmt.Errorf("mapping of %d bytes of guest memory at offset %#x, address %#x: %w", m.Size, m.Offset, m.Addr, err)
		}
		size = max(size, m.Offset+m.Size)
	}
	return size, pageSize, nil
}

func overlap(a, b, sizeA, sizeB uint64) bool { return a < b+sizeB && b < a+sizeA }

// at is the address of an offset, and how many bytes there are from there on.
func (s *Server) at(offset uint64) (addr, n uint64, ok bool) {
	for _, m := range s.mappings {
		if offset >= m.Offset && offset-m.Offset < m.Size {
			return m.Addr + (offset - m.Offset), m.Size - (offset - m.Offset), true
		}
	}
	return 0, 0, false
}

// offset is that of an address, and how many bytes there are from there on.
func (s *Server) offset(addr uint64) (offset, n uint64, ok bool) {
	for _, m := range s.mappings {
		if addr >= m.Addr && addr-m.Addr < m.Size {
			return m.Offset + (addr - m.Addr), m.Size - (addr - m.Addr), true
		}
	}
	return 0, 0, false
}
