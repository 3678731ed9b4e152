package blk

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// poolWorkers is how many requests of a queue block at the same time.
const poolWorkers = 8

// pool does the work of requests on goroutines of its own, which may block.
type pool struct {
	work  chan *request
	event int // an eventfd, written when something is finished
	one   []byte
	ended sync.WaitGroup
	// given is how many requests the pool has. It belongs to the goroutine
	// that submits and collects.
	given int

	// finished is the number of entries of list, so that the loop can look
	// without the lock.
	finished atomic.Int32
	mu       sync.Mutex
	list     []outcome
}

// outcome is a request whose work is done, or has failed.
type outcome struct {
	r     *request
	errno unix.Errno
}

// newPool makes a pool that has at most n requests at a time.
func newPool(n int) (*pool, error) {
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd of a disk: %w", err)
	}
	p := &pool{
		work: make(chan *request, n), event: event, one: binary.NativeEndian.AppendUint64(nil, 1),
		list: make([]outcome, 0, n),
	}
	for range poolWorkers {
		p.ended.Go(p.worker)
	}
	return p, nil
}

func (p *pool) worker() {
	for r := range p.work {
		p.finish(r, r.run())
	}
}

func (p *pool) finish(r *request, errno unix.Errno) {
	p.mu.Lock()
	p.list = append(p.list, outcome{r, errno})
	first := len(p.list) == 1
	p.finished.Store(int32(len(p.list)))
	p.mu.Unlock()
	if first {
		// EAGAIN, the only error, says that it is readable anyway.
		_, _ = unix.Write(p.event, p.one)
	}
}

// submit hands a request over. There is room for it.
func (p *pool) submit(r *request) {
	p.given++
	p.work <- r
}

// ready tells whether collect has something.
func (p *pool) ready() bool { return p.finished.Load() > 0 }

// collect appends what is finished to list, which has room.
func (p *pool) collect(list []outcome) []outcome {
	if !p.ready() {
		return list
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.given -= len(p.list)
	list = append(list, p.list...)
	clear(p.list)
	p.list = p.list[:0]
	p.finished.Store(0)
	return list
}

// close ends the workers of a pool that has no requests.
func (p *pool) close() error {
	close(p.work)
	p.ended.Wait()
	return unix.Close(p.event)
}
