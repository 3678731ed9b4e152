package limit

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Timer is a timerfd, for a loop that waits for file descriptors. Wait for it
// with EPOLLIN|EPOLLET: it is never read.
type Timer struct {
	fd int
}

// NewTimer makes a timer that is not set.
func NewTimer() (*Timer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("timerfd of a limit: %w", err)
	}
	return &Timer{fd: fd}, nil
}

// FD becomes readable when the time is over.
func (t *Timer) FD() int { return t.fd }

// Set makes the timer go off once after d, and forget what it was set to
// before. If d is 0 or less, that is at once.
func (t *Timer) Set(d time.Duration) {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(d, 1)))}
	// There is no error for a time that is not negative on a timerfd.
	_ = unix.TimerfdSettime(t.fd, 0, &spec, nil)
}

// Close frees the timer.
func (t *Timer) Close() error { return unix.Close(t.fd) }
