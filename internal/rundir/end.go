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
	process, err := vm.process()
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

// WaitEnd returns when the process that runs the machine has ended, and removes
// what it may have left. It is no error if it has ended before.
func (vm *VM) WaitEnd(ctx context.Context) error {
	process, err := vm.process()
	if err == nil {
		_, err = readable(ctx, process)
		err = errors.Join(err, unix.Close(process))
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
