package rundir

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// WaitUp returns when the guest is up. The error wraps ErrNotRunning if the
// machine ends before that.
func (vm *VM) WaitUp(ctx context.Context) error {
	process, err := vm.process()
	if err != nil {
		return fmt.Errorf("machine %s: %w", vm.Name, err)
	}
	defer unix.Close(process)
	changes, err := vm.watch()
	if err != nil {
		return fmt.Errorf("machine %s: %w", vm.Name, err)
	}
	defer unix.Close(changes)
	for {
		// After the watch, so that nothing is missed.
		if up, err := vm.Up(nil); up || err != nil {
			return err
		}
		ready, err := readable(ctx, process, changes)
		switch {
		case err != nil:
			return err
		case ready == process:
			return fmt.Errorf("machine %s: it has ended and %w", vm.Name, ErrNotRunning)
		}
		// What exactly has changed, Up tells.
		var events [4096]byte
		if _, err := unix.Read(changes, events[:]); err != nil && !errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("inotify: %w", err)
		}
	}
}

// readable returns the first of the descriptors that is readable. It fails when ctx
// ends.
func readable(ctx context.Context, descriptors ...int) (int, error) {
	done, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("eventfd: %w", err)
	}
	defer unix.Close(done)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		// There is no error for a descriptor that is open.
		_, _ = unix.Write(done, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-stopped
		}
	}()
	fds := []unix.PollFd{{Fd: int32(done), Events: unix.POLLIN}}
	for _, fd := range descriptors {
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	for {
		if _, err := unix.Poll(fds, -1); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return -1, fmt.Errorf("poll: %w", err)
		}
		if fds[0].Revents != 0 {
			return -1, ctx.Err()
		}
		for i, fd := range descriptors {
			if fds[1+i].Revents != 0 {
				return fd, nil
			}
		}
	}
}

// process is a descriptor of the process that runs the machine, readable when it
// has ended.
func (vm *VM) process() (int, error) {
	fd, err := unix.PidfdOpen(vm.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, ErrNotRunning
	}
	if err != nil {
		return -1, fmt.Errorf("process %d: %w", vm.PID, err)
	}
	// Another process may have got its number, or another machine its name. Not
	// if the lock of the very folder that was opened is still held, whatever is at
	// its path by now.
	running, err := held(fmt.Sprintf("/proc/self/fd/%d", vm.fd.Fd()))
	if err == nil && !running {
		err = ErrNotRunning
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// watch is a descriptor that is readable when a file of the folder has changed.
func (vm *VM) watch() (int, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("inotify: %w", err)
	}
	if _, err := unix.InotifyAddWatch(fd, filepath.Clean(vm.path), unix.IN_MOVED_TO|unix.IN_DELETE_SELF); err != nil {
		return -1, errors.Join(fmt.Errorf("inotify: %w", err), unix.Close(fd))
	}
	return fd, nil
}
