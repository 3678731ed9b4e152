package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Verify compares everything in the snapshot at dir and in those that it builds
// upon with its checksum. The error names the first chunk of memory that is
// damaged. progress, which may be nil, gets the bytes of memory that are done and
// that are to be done; it is called on several goroutines, one at a time.
func Verify(ctx context.Context, dir string, progress func(done, total int64)) error {
	c, err := OpenChain(dir)
	if err != nil {
		return err
	}
	return errors.Join(c.Verify(ctx, progress), c.Close())
}

// Verify is like the function, for snapshots that are open.
func (c *Chain) Verify(ctx context.Context, progress func(done, total int64)) error {
	count := counter(int64(len(c.layers))*c.oldest().size(), progress)
	for _, s := range c.layers {
		if err := s.verify(ctx, count); err != nil {
			return fmt.Errorf("verify snapshot %s: %w", s.dir, err)
		}
	}
	return nil
}

// counter turns progress into a function that is told what was just done.
func counter(total int64, progress func(done, total int64)) func(n int64) {
	var done int64
	return func(n int64) {
		done += n
		if progress != nil {
			progress(done, total)
		}
	}
}

func (s *Snapshot) size() int64 { return int64(s.manifest.Memory.Size) }

func (s *Snapshot) verify(ctx context.Context, count func(n int64)) error {
	chunks, err := s.chunks()
	if err != nil {
		return err
	}
	b := batches{size: s.size(), progress: count, worker: func() func(offset, end int64) error {
		r := chunks.reader()
		return func(offset, end int64) error {
			for ; offset < end; offset += ChunkSize {
				if _, err := r.read(offset); err != nil {
					return err
				}
			}
			return nil
		}
	}}
	return b.run(ctx)
}

// chunks are the memory of a snapshot with its checksums.
type chunks struct {
	s    *Snapshot
	sums []byte
	// zero is the checksum of a whole chunk of zeros.
	zero uint32
}

// chunks reads memory.sums.
func (s *Snapshot) chunks() (*chunks, error) {
	t := s.table(sumsMagic, ChunkSize)
	sums := make([]byte, 0, t.bytes())
	if err := t.read(s.sums, func(p []byte) { sums = append(sums, p...) }); err != nil {
		return nil, fmt.Errorf("%s: %w", SumsFile, err)
	}
	return &chunks{s: s, sums: sums, zero: checksum(make([]byte, ChunkSize))}, nil
}

// chunkReader reads chunks, best in rising order. It is for one goroutine.
type chunkReader struct {
	*chunks
	buf []byte
	// data is where the file has data again: there is none from where it was
	// asked to there.
	asked, data int64
}

func (c *chunks) reader() *chunkReader {
	return &chunkReader{chunks: c, buf: make([]byte, ChunkSize), asked: -1}
}

// read returns the chunk at offset after a look at its checksum. It is valid until
// the next read.
func (r *chunkReader) read(offset int64) ([]byte, error) {
	p := r.buf[:min(ChunkSize, r.s.size()-offset)]
	if r.hole(offset, int64(len(p))) {
		clear(p)
		if len(p) == ChunkSize {
			return p, r.compare(offset, len(p), r.zero)
		}
	} else if _, err := r.s.mem.ReadAt(p, offset); err != nil {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: the file has become shorter", ErrDamaged)
		}
		return nil, fmt.Errorf("read %s: %w", r.s.where(offset, len(p)), err)
	}
	return p, r.compare(offset, len(p), checksum(p))
}

// compare looks whether the checksum that was found is the one of the file.
func (r *chunkReader) compare(offset int64, n int, found uint32) error {
	if want := binary.LittleEndian.Uint32(r.sums[offset/ChunkSize*4:]); found != want {
		return fmt.Errorf("%w: checksum of %s is %#08x, want %#08x", ErrDamaged, r.s.where(offset, n), found, want)
	}
	return nil
}

// where says where a chunk is, for people.
func (s *Snapshot) where(offset int64, n int) string {
	return fmt.Sprintf("%d bytes of memory at guest address %#x (offset %#x of the file)", n, uint64(s.manifest.Memory.gpa(uint64(offset))), offset)
}

// hole tells whether n bytes at offset are known to be a hole.
func (r *chunkReader) hole(offset, n int64) bool {
	if r.asked < 0 || offset < r.asked || offset >= r.data {
		r.asked, r.data = offset, nextData(r.s.mem, offset, r.s.size())
	}
	return r.data >= offset+n
}

// nextData is where a file has data at or behind offset, or its size if nowhere.
func nextData(f *os.File, offset, size int64) int64 {
	for {
		data, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
		switch {
		case err == nil:
			return data
		case errors.Is(err, unix.ENXIO):
			return size
		case !errors.Is(err, unix.EINTR):
			return offset // cannot tell: it may be data
		}
	}
}
