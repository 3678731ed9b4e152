package snapshot

import (
	"context"
	"runtime"
	"sync"
)

// batchSize is how much memory a worker takes at a time, in bytes.
const batchSize = 64 * ChunkSize

// batches works through memory on all processors.
type batches struct {
	size int64
	// worker makes the function that works on one batch, with buffers of its
	// own.
	worker func() func(offset, end int64) error
	// progress is told of each batch that is done.
	progress func(n int64)

	mu     sync.Mutex
	next   int64
	failed int64 // offset of the first batch that failed
	err    error
}

// run returns the error of the first batch in memory that fails.
func (b *batches) run(ctx context.Context) error {
	b.failed = b.size
	var group sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), int(b.size/batchSize)+1) {
		group.Go(func() {
			work := b.worker()
			for {
				offset, end, ok := b.take(ctx)
				if !ok {
					return
				}
				b.finish(offset, end, work(offset, end))
			}
		})
	}
	group.Wait()
	if b.err == nil {
		return ctx.Err()
	}
	return b.err
}

// take returns the next batch. They go out in order, so when one fails all those
// before it are done or under way.
func (b *batches) take(ctx context.Context) (offset, end int64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next >= b.failed || ctx.Err() != nil {
		return 0, 0, false
	}
	offset = b.next
	b.next = min(offset+batchSize, b.size)
	return offset, b.next, true
}

func (b *batches) finish(offset, end int64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case err == nil:
		b.progress(end - offset)
	case offset < b.failed:
		b.failed, b.err = offset, err
	}
}
