package snapshot

import (
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// flushEvery is how many bytes may gather before the kernel is told to begin
// writing them to the disk.
const flushEvery = 32 << 20

// flusher has the kernel write the memory file to the disk while the rest of it
// is still being made, so that the fsync at the end finds little to do.
type flusher struct {
	f       *os.File
	pending atomic.Int64
	wake    chan struct{}
	ended   sync.WaitGroup
}

func newFlusher(f *os.File) *flusher {
	u := &flusher{f: f, wake: make(chan struct{}, 1)}
	u.ended.Go(u.run)
	return u
}

// wrote counts bytes that were written to the file.
func (u *flusher) wrote(n int) {
	if u.pending.Add(int64(n)) < flushEvery {
		return
	}
	u.pending.Store(0)
	select {
	case u.wake <- struct{}{}:
	default: // it is at it
	}
}

func (u *flusher) run() {
	for range u.wake {
		// Only a hint: errors come again at the fsync.
		_ = unix.SyncFileRange(int(u.f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
}

// stop waits until no call uses the file any more.
func (u *flusher) stop() {
	close(u.wake)
	u.ended.Wait()
}
