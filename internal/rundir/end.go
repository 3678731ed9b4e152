package rundir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Kill kills the process that runs the machine at once (SIGKILL). The error wraps
// ErrNotRunning if it has ended already. WaitEnd tells when it is gone.
func (vm *VM) Kill() error {
	process, err := vm.owner()
	if err == nil {
		err = errors.Join(unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0), unix.Close(process))
	}
	if errors.Is(err, unix.ESRCH) {
		err = ErrNotRunning
	}
	if err != nil {
		return fmt.Errorf("machine %s: kill its process %d: %w", vm.Name, vm.PID, err)
	}
	return nil
}

// owner is process of this machine, not of some machine that has got its name:
// the lock of the very folder that was opened says so, whatever is at its path by
// now.
func (vm *VM) owner() (int, error) {
	fd, err := vm.process()
	if err != nil {
		return -1, err
	}
	running, err := held(fmt.Sprintf("/proc/self/fd/%d", vm.fd.Fd()))
	if err == nil && !running {
		err = ErrNotRunning
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// WaitEnd returns when the process that runs the machine has ended, and removes
// what it may have left. It is no error if it has ended before.
func (vm *VM) WaitEnd(ctx context.Context) error {
	process, err := vm.owner()
	if err == nil {
		err = errors.Join(readable(ctx, process), unix.Close(process))
	}
	if errors.Is(err, ErrNotRunning) {
		err = nil
	}
	if err == nil {
		err = underLock(filepath.Dir(vm.path), func() error { return removeStale(vm.path) })
	}
	if err != nil {
		return fmt.Errorf("machine %s: wait for its end: %w", vm.Name, err)
	}
	return nil
}

// readable returns when the descriptor is readable, or when ctx ends.
func readable(ctx context.Context, fd int) error {
	done, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return err
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
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(done), Events: unix.POLLIN}}
		_, err := unix.Poll(fds, -1)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("poll: %w", err)
		case fds[0].Revents != 0:
			return nil
		case fds[1].Revents != 0:
			return ctx.Err()
		}
	}
}

// Remove removes what the killed process of a machine has left. The error wraps
// ErrRunning if the machine runs, and fs.ErrNotExist if there is nothing.
func Remove(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	base, err := Base()
	if err != nil {
		return err
	}
	err = underLock(base, func() error {
		path := filepath.Join(base, name)
		if info, err := os.Lstat(path); err != nil || !info.IsDir() {
			return errors.Join(err, fs.ErrNotExist)
		}
		return clear(path)
	})
	if err != nil {
		return fmt.Errorf("machine %s: %w", name, err)
	}
	return nil
}
