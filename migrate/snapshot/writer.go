package snapshot

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

// Options say what snapshot is to be made.
type Options struct {
	// Memory are the ranges of RAM in rising order.
	Memory []memory.Range
	// Base is the directory of the snapshot that a diff builds upon; empty
	// makes a full snapshot.
	Base string
	// BaseID is what the base's ID has to be; empty takes any.
	BaseID string

	// id of a snapshot that is merged from others; zero makes a new one.
	id id
}

// Writer makes a snapshot. WritePages may be called from several goroutines; the
// other methods are for one goroutine when no WritePages runs.
//
// A Writer ends with Commit or Abort. After an error only Abort makes sense:
// nothing is at the directory that was to be made.
type Writer struct {
	place    place
	manifest Manifest
	id       id
	mem      *os.File
	extra    []*os.File

	// sums has the checksum of each page, XORed with that of a zero page:
	// what was never written needs no entry.
	sums   []uint32
	summer *summer
	// written are pages that may have a block on the disk.
	written *memory.Bitmap
	// contained are the pages of a diff, nil otherwise.
	contained *memory.Bitmap

	buffers chan []byte
	flusher *flusher
	failure atomic.Pointer[error]
	done    bool
}

// buffersPerWriter bounds how many WritePages work at the same time; more than
// that would only wait for the file's lock.
const buffersPerWriter = 4

// Create begins a snapshot at dir, which must not exist; the directory it lies in
// must. It removes what a killed writer of the same dir left behind.
func Create(dir string, o Options) (*Writer, error) {
	w, err := create(dir, o)
	if err != nil {
		return nil, fmt.Errorf("make snapshot %s: %w", dir, explain(err))
	}
	return w, nil
}

func create(dir string, o Options) (*Writer, error) {
	w := &Writer{manifest: Manifest{Format: current, Kind: Full, Memory: layout(o.Memory)}}
	if err := w.manifest.Memory.check(); err != nil {
		return nil, err
	}
	if w.id = o.id; w.id == (id{}) {
		if _, err := rand.Read(w.id[:]); err != nil {
			return nil, err
		}
	}
	w.manifest.ID = w.id.String()
	var err error
	if w.place, err = newPlace(dir); err != nil {
		return nil, err
	}
	if o.Base != "" {
		err = w.setBase(o)
	}
	if err == nil {
		w.mem, err = w.place.occupy()
	}
	if err == nil {
		err = w.mem.Truncate(int64(w.manifest.Memory.Size))
	}
	if err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	pages := w.manifest.Memory.Size / PageSize
	w.sums = make([]uint32, pages)
	w.summer = newSummer()
	w.written = memory.NewBitmap(pages)
	if o.Base != "" {
		w.contained = memory.NewBitmap(pages)
	}
	w.buffers = make(chan []byte, buffersPerWriter)
	for range buffersPerWriter {
		w.buffers <- make([]byte, ChunkSize)
	}
	w.flusher = newFlusher(w.mem)
	return w, nil
}

// setBase makes the snapshot a diff.
func (w *Writer) setBase(o Options) error {
	base, err := Open(o.Base)
	if err != nil {
		return fmt.Errorf("base: %w", err)
	}
	defer base.Close()
	m := base.Manifest()
	if !m.Memory.equal(w.manifest.Memory) {
		return fmt.Errorf("base %s has memory of another size or at other addresses: make a full snapshot", o.Base)
	}
	if o.BaseID != "" && o.BaseID != m.ID {
		return fmt.Errorf("base %s is snapshot %s, want %s: the changes are counted from that one; name its directory, or make a full snapshot", o.Base, m.ID, o.BaseID)
	}
	path, err := w.place.relative(o.Base)
	if err != nil {
		return err
	}
	w.manifest.Kind = Diff
	w.manifest.Base = &Base{Path: path, ID: m.ID}
	return nil
}

// ID of the snapshot, as it will stand in its manifest.
func (w *Writer) ID() string { return w.manifest.ID }

// WritePages puts whole pages at offset of the memory file, both in bytes. Later
// calls for the same pages replace what earlier ones wrote. Pages of zeros become
// holes. The guest may change p meanwhile; what is then in the snapshot is
// something between, and its checksum is right. Calls that run at the same time
// must be for different pages.
func (w *Writer) WritePages(offset int64, p []byte) error {
	if failure := w.failure.Load(); failure != nil {
		return *failure
	}
	if size := int64(w.manifest.Memory.Size); offset < 0 || offset%PageSize != 0 || len(p)%PageSize != 0 || offset > size || int64(len(p)) > size-offset {
		return fmt.Errorf("write %d bytes of memory at offset %#x to a snapshot: want whole pages inside %#x bytes", len(p), offset, size)
	}
	if len(p) == 0 {
		return nil
	}
	if w.contained != nil {
		w.contained.Set(uint64(offset)/PageSize, uint64(len(p))/PageSize)
	}
	buf := <-w.buffers
	defer func() { w.buffers <- buf }()
	for len(p) > 0 {
		// The copy keeps still, and stays in the cache for the checksum
		// and for the kernel.
		n := copy(buf, p)
		if err := w.writeBlock(offset, buf[:n]); err != nil {
			return w.fail(fmt.Errorf("write memory of snapshot %s: %w", w.place.dir, explain(err)))
		}
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}

var zeroPage [PageSize]byte

// writeBlock writes runs of pages that are zero, or are not.
func (w *Writer) writeBlock(offset int64, p []byte) error {
	for len(p) > 0 {
		hole := bytes.Equal(p[:PageSize], zeroPage[:])
		n := PageSize
		for n < len(p) && bytes.Equal(p[n:n+PageSize], zeroPage[:]) == hole {
			n += PageSize
		}
		var err error
		if hole {
			err = w.punch(offset, n)
		} else {
			err = w.write(offset, p[:n])
		}
		if err != nil {
			return err
		}
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}

func (w *Writer) write(offset int64, p []byte) error {
	first := uint64(offset) / PageSize
	w.written.Set(first, uint64(len(p))/PageSize)
	if _, err := w.mem.WriteAt(p, offset); err != nil {
		return err
	}
	w.adopt(offset, p)
	w.flusher.wrote(len(p))
	return nil
}

// adopt notes the checksums of pages that the file has.
func (w *Writer) adopt(offset int64, p []byte) {
	page := offset / PageSize
	for i := 0; i < len(p); i += PageSize {
		w.sums[page] = checksum(p[i:i+PageSize]) ^ w.summer.zero
		page++
	}
}

// punch makes n bytes a hole again. Most have never been anything else.
func (w *Writer) punch(offset int64, n int) error {
	first, end := uint64(offset)/PageSize, uint64(offset+int64(n))/PageSize
	for page := first; page < end; page++ {
		if w.written.Test(page) {
			clear(w.sums[first:end])
			return punchHole(w.mem, offset, int64(n))
		}
	}
	return nil
}

// CreateFile adds a file to the snapshot, for example a copy of a disk. Commit
// puts it on the disk and closes it.
func (w *Writer) CreateFile(name string) (*os.File, error) {
	err := checkExtra(name)
	var f *os.File
	if err == nil {
		f, err = w.place.create(name)
	}
	if err != nil {
		return nil, w.fail(fmt.Errorf("make file %q of snapshot %s: %w", name, w.place.dir, explain(err)))
	}
	w.extra = append(w.extra, f)
	return f, nil
}

// fail keeps the first error: what is written after it is worthless.
func (w *Writer) fail(err error) error {
	w.failure.CompareAndSwap(nil, &err)
	return *w.failure.Load()
}

// Abort removes what was written. It does nothing after Commit or Abort.
func (w *Writer) Abort() error {
	if w.done {
		return nil
	}
	err := w.place.discard()
	w.close()
	if err != nil {
		return fmt.Errorf("remove unfinished snapshot %s: %w: remove it by hand", w.place.tmpPath(), err)
	}
	return nil
}

// close frees everything. The lock goes with the memory file, so this comes last.
func (w *Writer) close() {
	w.done = true
	w.fail(fmt.Errorf("snapshot %s is finished: %w", w.place.dir, os.ErrClosed))
	if w.flusher != nil {
		w.flusher.stop()
	}
	for _, f := range w.extra {
		_ = f.Close() // its contents are on the disk, or not wanted
	}
	if w.mem != nil {
		_ = w.mem.Close()
	}
	w.place.close()
	w.sums, w.written, w.contained = nil, nil, nil
}

// explain adds what to do about errors that have the machine as their cause.
func explain(err error) error {
	for _, hint := range []struct {
		errno unix.Errno
		todo  string
	}{
		{unix.ENOSPC, "free space there, or choose another directory"},
		{unix.EDQUOT, "free space of this user there, or choose another directory"},
		{unix.EFBIG, "raise the limit of file sizes (ulimit -f), or choose a file system that takes such files"},
		{unix.EIO, "the storage fails: choose another one, and see the kernel's log"},
		{unix.EROFS, "choose a directory on a file system that can be written"},
		{unix.EACCES, "choose a directory that this user may write"},
	} {
		if errors.Is(err, hint.errno) {
			return fmt.Errorf("%w: %s", err, hint.todo)
		}
	}
	return err
}

// absolute is the path of a directory without symbolic links.
func absolute(dir string) (string, error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}
