package memory

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Present sets the bits of the pages that may hold something else than zeros,
// numbered as in Dirty. A page that somebody writes at the same time may be missing.
func (g *Guest) Present(dst []uint64) error {
	b := Bitmap{words: dst, pages: g.size / PageSize}
	if g.fd < 0 {
		b.Set(0, b.pages)
		return nil
	}
	for at := int64(0); at < int64(g.size); {
		data, err := unix.Seek(g.fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // nothing more
		}
		if err != nil {
			return fmt.Errorf("look for the guest memory that is in use: %w", err)
		}
		hole, err := unix.Seek(g.fd, data, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("look for the guest memory that is in use: %w", err)
		}
		first := uint64(data) / PageSize
		b.Set(first, (uint64(hole)+PageSize-1)/PageSize-first)
		at = hole
	}
	return nil
}
