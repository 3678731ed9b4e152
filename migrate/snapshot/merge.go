package snapshot

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"
)

// Merge makes a full snapshot at out of the one at dir and all that it builds
// upon, whose checksums it compares on the way. State, manifest and ID are those
// of dir: it is the same moment of the guest, so diffs that build upon dir may be
// given out in its place. progress is as for Verify. Nothing is at out unless the
// error is nil.
func Merge(ctx context.Context, dir, out string, progress func(done, total int64)) error {
	if err := merge(ctx, dir, out, progress, reflink); err != nil {
		return fmt.Errorf("merge snapshot %s: %w", dir, err)
	}
	return nil
}

func merge(ctx context.Context, dir, out string, progress func(done, total int64), clone func(dst, src *os.File) error) (err error) {
	c, err := OpenChain(dir)
	if err != nil {
		return err
	}
	defer c.Close()
	newest := c.Newest()
	w, err := Create(out, Options{Memory: newest.Ranges(), id: newest.state.id})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Abort()) }()

	m := merger{w: w}
	for _, s := range c.layers {
		chunks, err := s.chunks()
		if err != nil {
			return err
		}
		m.layers = append(m.layers, chunks)
	}
	// Where the file system can share blocks, only what diffs changed takes
	// space and time.
	if m.cloned = clone(w.mem, c.oldest().mem) == nil; m.cloned {
		w.written.Set(0, w.written.Pages())
	}
	b := batches{size: newest.size(), worker: m.worker, progress: counter(newest.size(), progress)}
	if err := b.run(ctx); err != nil {
		return err
	}
	if err := copyDisks(newest, w); err != nil {
		return err
	}
	return w.Commit(*newest.manifest, newest.state.sections)
}

// merger puts the memory of a chain together, chunk by chunk.
type merger struct {
	w      *Writer
	layers []*chunks // newest first
	// cloned says that the new file already has what the oldest layer has.
	cloned bool
}

// worker is for batches.
func (m *merger) worker() func(offset, end int64) error {
	readers := make([]*chunkReader, len(m.layers))
	for i, layer := range m.layers {
		readers[i] = layer.reader()
	}
	return func(offset, end int64) error {
		for ; offset < end; offset += ChunkSize {
			p, changed, err := m.chunk(readers, offset)
			if err == nil {
				err = m.write(offset, p, changed)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// A chunk has as many pages as a word of the bitmaps has bits.
const _ = uint(64-pagesPerChunk) + uint(pagesPerChunk-64)

// chunk returns a chunk of the merged memory, and which of its pages come from
// diffs. From each file it takes whole chunks, because of their checksums.
func (m *merger) chunk(readers []*chunkReader, offset int64) (p []byte, changed uint64, err error) {
	oldest := readers[len(readers)-1]
	if p, err = oldest.read(offset); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", oldest.s.dir, err)
	}
	for i := len(readers) - 2; i >= 0; i-- {
		r := readers[i]
		pages := r.s.pages[offset/ChunkSize]
		if pages == 0 {
			continue
		}
		changed |= pages
		from, err := r.read(offset)
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", r.s.dir, err)
		}
		for ; pages != 0; pages &= pages - 1 {
			at := bits.TrailingZeros64(pages) * PageSize
			copy(p[at:at+PageSize], from[at:])
		}
	}
	return p, changed, nil
}

// write puts a merged chunk into the new file.
func (m *merger) write(offset int64, p []byte, changed uint64) error {
	if !m.cloned {
		return m.w.WritePages(offset, p)
	}
	m.w.adopt(offset, p)
	for changed != 0 {
		first := bits.TrailingZeros64(changed)
		n := bits.TrailingZeros64(^(changed >> first))
		at := first * PageSize
		if err := m.w.WritePages(offset+int64(at), p[at:at+n*PageSize]); err != nil {
			return err
		}
		changed &^= (1<<n - 1) << first
	}
	return nil
}

// copyDisks copies the disks that lie in the snapshot.
func copyDisks(s *Snapshot, w *Writer) error {
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	done := make(map[string]bool)
	for _, d := range s.manifest.Disks {
		if d.File == "" || done[d.File] {
			continue
		}
		done[d.File] = true
		if err := copyExtra(dir, d.File, w); err != nil {
			return fmt.Errorf("copy disk %s: %w", d.ID, err)
		}
	}
	return nil
}

func copyExtra(dir *os.File, name string, w *Writer) error {
	src, _, err := openRegular(dir, name, -1, maxFileSize)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := w.CreateFile(name)
	if err != nil {
		return err
	}
	return CopyFile(dst, src)
}
