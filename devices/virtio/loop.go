package virtio

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Loop waits for events on file descriptors and calls a function for each, all
// on one goroutine, so that the functions need no locks among themselves. A
// device has one Loop, or one for each of its queues.
type Loop struct {
	epoll, wake int

	mu       sync.Mutex
	handlers map[int32]func(events uint32)
	stopping bool
	stopped  chan struct{} // closed when the goroutine has ended; nil if there is none
}

// NewLoop makes a loop that waits for nothing.
func NewLoop() (*Loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll of a device: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("eventfd of a device: %w", err), unix.Close(epoll))
	}
	l := &Loop{epoll: epoll, wake: wake, handlers: make(map[int32]func(uint32))}
	if err := l.Add(wake, unix.EPOLLIN|unix.EPOLLET, func(uint32) {}); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Add calls f on the loop's goroutine when one of the epoll events happens on
// fd. It may be called at any time, also by such a function.
func (l *Loop) Add(fd int, events uint32, f func(events uint32)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	// The loop asks for the handler under the lock, so an event that comes
	// at once finds it.
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("wait for file descriptor %d: %w", fd, err)
	}
	l.handlers[int32(fd)] = f
	return nil
}

// AddQueue calls f when the driver has kicked the queue. The eventfd is never
// read: each write to it is an edge. A device kicks its queues itself when it
// starts, because what the driver added before may have been kicked before, or
// not have needed a kick.
func (l *Loop) AddQueue(q *Queue, f func()) error {
	return l.Add(q.EventFD(), unix.EPOLLIN|unix.EPOLLET, func(uint32) { f() })
}

// Modify changes the events of a descriptor that was added.
func (l *Loop) Modify(fd int, events uint32) error {
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("wait for file descriptor %d: %w", fd, err)
	}
	return nil
}

// Remove ends the wait for fd, which is still open. Its function may be called
// once more if the loop has the event in hand already, but not if Remove is
// called on the loop.
func (l *Loop) Remove(fd int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.handlers, int32(fd))
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, fd, nil); err != nil {
		return fmt.Errorf("forget file descriptor %d: %w", fd, err)
	}
	return nil
}

// Start runs the loop until Stop.
func (l *Loop) Start() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped == nil {
		l.stopping = false
		l.stopped = make(chan struct{})
		go l.run(l.stopped)
	}
}

// Stop returns when no function of the loop runs any more. What happens
// afterwards is served after the next Start. It is not called on the loop, and
// not at the same time as Start.
func (l *Loop) Stop() {
	l.mu.Lock()
	stopped := l.stopped
	l.stopped = nil
	l.stopping = true
	l.mu.Unlock()
	if stopped == nil {
		return
	}
	signal(l.wake)
	<-stopped
}

// Close frees the loop, which is stopped.
func (l *Loop) Close() error {
	return errors.Join(unix.Close(l.wake), unix.Close(l.epoll))
}

// batch is how many events the loop takes at once.
const batch = 16

func (l *Loop) run(stopped chan<- struct{}) {
	defer close(stopped)
	var events [batch]unix.EpollEvent
	for {
		n, err := unix.EpollWait(l.epoll, events[:], -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			// There is no such error but for a descriptor that is not
			// an epoll: a bug that the vCPU threads must not wait for.
			return
		}
		for _, e := range events[:max(n, 0)] {
			if f := l.handler(e.Fd); f != nil {
				f(e.Events)
			}
		}
		// Not before: an edge that was taken from epoll does not come again.
		if l.mustStop() {
			return
		}
	}
}

// handler is nil for a descriptor that was removed after its event was taken.
func (l *Loop) handler(fd int32) func(uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.handlers[fd]
}

func (l *Loop) mustStop() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stopping
}
