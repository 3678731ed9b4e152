package snapshot

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// maxFileSize is for files that have no limit of their own.
const maxFileSize = math.MaxInt64

// CopyFile makes dst, which is empty, a copy of src: sharing the blocks where the
// file system can, else byte by byte with holes where src has them. It is meant
// for copies of disks in a snapshot.
func CopyFile(dst, src *os.File) error {
	if reflink(dst, src) == nil {
		return nil
	}
	if err := copySparse(dst, src); err != nil {
		return fmt.Errorf("copy %s to %s: %w", src.Name(), dst.Name(), explain(err))
	}
	return nil
}

// reflink has dst share all blocks of src.
func reflink(dst, src *os.File) error {
	return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
}

func copySparse(dst, src *os.File) error {
	info, err := src.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if err := dst.Truncate(size); err != nil {
		return err
	}
	for offset := nextData(src, 0, size); offset < size; {
		end := nextHole(src, offset, size)
		if err := copyRange(dst, src, offset, end); err != nil {
			return err
		}
		offset = nextData(src, end, size)
	}
	return nil
}

// copyRange copies the bytes from offset to end, inside the kernel if it can.
func copyRange(dst, src *os.File, offset, end int64) error {
	if _, err := src.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	if _, err := dst.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	n, err := io.Copy(dst, io.LimitReader(src, end-offset))
	if err == nil && n < end-offset {
		err = fmt.Errorf("%w after %d bytes", io.ErrUnexpectedEOF, offset+n)
	}
	return err
}

// nextHole is where a file has a hole behind offset, at which it has data.
func nextHole(f *os.File, offset, size int64) int64 {
	for {
		hole, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_HOLE)
		switch {
		case err == nil && hole > offset:
			return hole
		case !errors.Is(err, unix.EINTR):
			return size
		}
	}
}
