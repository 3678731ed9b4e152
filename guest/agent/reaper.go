package agent

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Reaper starts processes and waits for them. The first process of a system
// also inherits all orphans and must wait for those, and wait(2) for any child
// takes the status away from whoever waits for a certain one: so everything
// that the first process starts has to go through one Reaper.
type Reaper struct {
	orphans bool

	// mu is held while a process is started, so that it is in the table
	// before its end can be noticed, and while one is reaped, so that no
	// signal goes to a process number that is in use again.
	mu       sync.Mutex
	children map[int]*Child
}

// Child is a process started by a Reaper.
type Child struct {
	reaper *Reaper
	pid    int
	done   chan struct{}
	status syscall.WaitStatus
}

// NewReaper is a Reaper for this process. In the first process of the system
// there must be only one.
func NewReaper() *Reaper {
	r := &Reaper{orphans: os.Getpid() == 1, children: make(map[int]*Child)}
	if r.orphans {
		ended := make(chan os.Signal, 1)
		signal.Notify(ended, syscall.SIGCHLD)
		go func() {
			for range ended {
				r.reapAll()
			}
		}()
	}
	return r
}

// Start starts a process.
func (r *Reaper) Start(file string, args []string, attr *syscall.ProcAttr) (*Child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(file, args, attr)
	if err != nil {
		return nil, err
	}
	c := &Child{reaper: r, pid: pid, done: make(chan struct{})}
	r.children[pid] = c
	if !r.orphans {
		go r.await(pid)
	}
	return c, nil
}

// reapAll reaps every child that has ended.
func (r *Reaper) reapAll() {
	for r.reap(-1, syscall.WNOHANG) {
	}
}

// await reaps one child when it ends.
func (r *Reaper) await(pid int) {
	// Without reaping it yet, since mu cannot be held meanwhile.
	err := ignoringEINTR(func() error {
		return unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
	})
	if err == nil {
		r.reap(pid, 0)
	}
}

// reap takes the status of a child that has ended and tells whether there was
// one. pid is as for wait4(2).
func (r *Reaper) reap(pid, options int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var status syscall.WaitStatus
	err := ignoringEINTR(func() (err error) {
		pid, err = syscall.Wait4(pid, &status, options, nil)
		return err
	})
	if err != nil || pid <= 0 {
		return false
	}
	// One that is not in the table was an orphan.
	if c := r.children[pid]; c != nil {
		delete(r.children, pid)
		c.status = status
		close(c.done)
	}
	return true
}

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// Wait waits for the end of the process.
func (c *Child) Wait() Exit {
	<-c.done
	if c.status.Signaled() {
		return Exit{Signal: int(c.status.Signal())}
	}
	return Exit{Code: c.status.ExitStatus()}
}

// Signal sends a signal to the process group that the process leads.
func (c *Child) Signal(sig syscall.Signal) error {
	c.reaper.mu.Lock()
	defer c.reaper.mu.Unlock()
	select {
	case <-c.done:
		return nil
	default:
	}
	if err := syscall.Kill(-c.pid, sig); err != nil {
		return fmt.Errorf("signal %d: %w", sig, err)
	}
	return nil
}
