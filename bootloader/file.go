package bootloader

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// File is a kernel or an initial RAM disk.
type File struct {
	// Name is what errors call the file, usually its path.
	Name string
	// Size is the length of the content in bytes.
	Size int64
	// Content is where the bytes come from. It is read from one goroutine.
	Content io.ReaderAt
}

// NewFile makes a File of an open regular file, which stays the caller's to
// close.
func NewFile(f *os.File) (*File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: %v", f.Name(), info.Mode().Type())
	}
	return &File{Name: f.Name(), Size: info.Size(), Content: f}, nil
}

// errorf is an error about the file, which it names together with its size.
func (f *File) errorf(format string, args ...any) error {
	return fmt.Errorf("%s (%d bytes): %w", f.Name, f.Size, fmt.Errorf(format, args...))
}

// contains tells whether the n bytes at off lie inside the file.
func (f *File) contains(off, n uint64) bool {
	size := uint64(max(f.Size, 0))
	return off <= size && n <= size-off
}

// readAt fills p from offset off. p may be guest memory.
func (f *File) readAt(p []byte, off uint64) error {
	if !f.contains(off, uint64(len(p))) {
		return f.errorf("truncated: want %d bytes at offset %d", len(p), off)
	}
	n, err := f.Content.ReadAt(p, int64(off))
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return f.errorf("read %d bytes at offset %d: %w", len(p), off, err)
}
