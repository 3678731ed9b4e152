package memory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
)

// Touched is a run of pages that somebody has used: written, or only read.
type Touched struct {
	Span
	Written bool
}

// ErrNotPrivate says that it is not known what was used of memory that is not mapped from
// saved files.
var ErrNotPrivate = errors.New("the memory is not a private mapping of saved memory")

// From Documentation/admin-guide/mm/pagemap.rst.
const (
	pagePresent, pageSwapped = 1 << 63, 1 << 62
	pageOfFile               = 1 << 61

	pagemapEntry  = 8 // bytes
	pagemapAtOnce = 64 << 10
)

// Touched are the pages of a restored guest that were used since, in rising order. With
// a page that is read the kernel maps those around it that it has at hand; they count, too.
func (g *Guest) Touched() ([]Touched, error) {
	if !g.private {
		return nil, ErrNotPrivate
	}
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, fmt.Errorf("look for the guest memory that was used: %w", err)
	}
	defer pagemap.Close()
	var runs []Touched
	for i := range g.regions {
		if runs, err = touched(runs, pagemap, &g.regions[i]); err != nil {
			return nil, fmt.Errorf("look for the guest memory that was used: %w", err)
		}
	}
	return runs, nil
}

// touched appends the runs of a region.
func touched(runs []Touched, pagemap *os.File, r *Region) ([]Touched, error) {
	buf := make([]byte, pagemapAtOnce)
	from := int64(addressOf(r.Mem)) / PageSize * pagemapEntry
	for at := uint64(0); at < r.Size; {
		n := min(pagemapAtOnce/pagemapEntry, (r.Size-at)/PageSize)
		if _, err := pagemap.ReadAt(buf[:n*pagemapEntry], from+int64(at/PageSize*pagemapEntry)); err != nil {
			return nil, err
		}
		for i := range n {
			e := binary.NativeEndian.Uint64(buf[i*pagemapEntry:])
			if e&(pagePresent|pageSwapped) != 0 {
				runs = appendPage(runs, r.Offset+at+i*PageSize, e&pageOfFile == 0)
			}
		}
		at += n * PageSize
	}
	return runs, nil
}

// appendPage appends a page to the last run if it goes on with it, else as a new one.
func appendPage(runs []Touched, offset uint64, written bool) []Touched {
	if last := len(runs) - 1; last >= 0 && runs[last].Offset+runs[last].Length == offset && runs[last].Written == written {
		runs[last].Length += PageSize
		return runs
	}
	return append(runs, Touched{Span{offset, PageSize}, written})
}
