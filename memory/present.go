package memory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Present sets the bits of the pages that may hold something else than zeros,
// numbered as in Dirty. A page that somebody writes at the same time may be missing.
func (g *Guest) Present(dst []uint64) error {
	b := Bitmap{words: dst, pages: g.size / PageSize}
	if g.Pager() != NoPager {
		b.Set(0, b.pages) // it may still come
		return nil
	}
	err := error(nil)
	if g.fd >= 0 {
		err = setData(&b, g.fd, 0, g.size)
	} else {
		err = g.presentSaved(&b)
	}
	if err != nil {
		return fmt.Errorf("look for the guest memory that is in use: %w", err)
	}
	return nil
}

// setData sets the bits of the pages of a file that are not holes.
func setData(b *Bitmap, fd int, from, end uint64) error {
	for at := int64(from); at < int64(end); {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // nothing more
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		first := uint64(data) / PageSize
		last := (min(uint64(hole), end) + PageSize - 1) / PageSize
		if first < last {
			b.Set(first, last-first)
		}
		at = hole
	}
	return nil
}

// presentSaved is Present of a restored guest: what is in the files, and what has
// been written since.
func (g *Guest) presentSaved(b *Bitmap) error {
	for _, e := range g.saved {
		if err := setData(b, int(e.File.Fd()), e.Offset, e.Offset+e.Length); err != nil {
			return err
		}
	}
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer pagemap.Close()
	for i := range g.regions {
		if err := setWritten(b, pagemap, &g.regions[i]); err != nil {
			return err
		}
	}
	return nil
}

// setWritten sets the bits of the pages of a private mapping that are not its file's
// any more (Documentation/admin-guide/mm/pagemap.rst).
func setWritten(b *Bitmap, pagemap io.ReaderAt, r *Region) error {
	const (
		present, swapped = 1 << 63, 1 << 62
		ofFile           = 1 << 61

		entry = 8 // bytes
	)
	buf := make([]byte, 64<<10)
	at := int64(addressOf(r.Mem)) / PageSize * entry
	for page, pages := uint64(0), r.Size/PageSize; page < pages; {
		n := min(uint64(len(buf))/entry, pages-page)
		if _, err := pagemap.ReadAt(buf[:n*entry], at+int64(page*entry)); err != nil {
			return err
		}
		for i := range n {
			e := binary.NativeEndian.Uint64(buf[i*entry:])
			if e&(present|swapped) != 0 && e&ofFile == 0 {
				b.Set(r.Offset/PageSize+page+i, 1)
			}
		}
		page += n
	}
	return nil
}
