package uffd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// eventsAtOnce is how many events are read by one system call.
const eventsAtOnce = 64

// listen reads events and queues faults until ctx ends. It takes no lock that is held
// while a page is copied: the kernel lets nobody copy while an event is unread.
func (s *Server) listen(ctx context.Context) error {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	defer unix.Close(stop)
	stopped := make(chan struct{})
	disarm := context.AfterFunc(ctx, func() {
		defer close(stopped)
		// It has room for more than one.
		_, _ = unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !disarm() {
			<-stopped
		}
	}()

	messages := make([]message, eventsAtOnce)
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(s.fd.fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for page faults: %w", err)
		}
		if fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0 {
			return fmt.Errorf("wait for page faults: not a userfaultfd that is set up (events %#x)", fds[0].Revents)
		}
		n, err := read(s.fd.fd, messages)
		switch {
		case err == nil && n > 0:
		case err == nil, errors.Is(err, unix.ESRCH):
			return ErrGone
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		default:
			return fmt.Errorf("read page faults: %w", err)
		}
		for i := range messages[:n] {
			if err := s.take(&messages[i]); err != nil {
				return err
			}
		}
		if fds[0].Revents&unix.POLLHUP != 0 {
			return ErrGone
		}
	}
	return nil
}

// take takes an event.
func (s *Server) take(m *message) error {
	switch m.event {
	case eventPagefault:
		offset, _, ok := s.offset(m.end)
		if !ok {
			return fmt.Errorf("a page fault at %#x, where no guest memory is", m.end)
		}
		s.queue.add(fault{offset / s.pageSize * s.pageSize, time.Now()})
	case eventRemove:
		s.removed(m.start, m.end)
	}
	return nil
}

// removed notes that pages were given back, and are zero from now on.
func (s *Server) removed(from, end uint64) {
	for from < end {
		offset, n, ok := s.offset(from)
		if !ok {
			return
		}
		n = min(n, end-from)
		s.brought(offset, n)
		from += n
	}
}

// fault is a page that somebody waits for, since when we know of it.
type fault struct {
	offset uint64
	at     time.Time
}

// queue is the faults that wait for a worker, one for a page. There are as many at
// most as the process whose memory it is has threads.
type queue struct {
	mu      sync.Mutex
	changed sync.Cond
	faults  []fault
	asked   map[uint64]bool
	closed  bool
}

func (q *queue) init() {
	q.changed.L = &q.mu
	q.asked = make(map[uint64]bool)
}

func (q *queue) add(f fault) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.asked[f.offset] {
		return
	}
	q.asked[f.offset] = true
	q.faults = append(q.faults, f)
	q.changed.Signal()
}

// take waits for a fault; ok is false when the queue is closed.
func (q *queue) take() (f fault, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.faults) == 0 && !q.closed {
		q.changed.Wait()
	}
	if q.closed {
		return f, false
	}
	f = q.faults[0]
	q.faults = q.faults[1:]
	return f, true
}

// served makes the next fault on a page one to be served.
func (q *queue) served(offset uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.asked, offset)
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.changed.Broadcast()
}
