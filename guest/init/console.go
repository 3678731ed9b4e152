package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/guest/agent"
)

// consoleDevice is the terminal behind /dev/console, which can be a
// controlling terminal where /dev/console itself can not.
func consoleDevice() string {
	if active, err := os.ReadFile("/sys/class/tty/console/active"); err == nil {
		// The last one named is the one that /dev/console means.
		if names := strings.Fields(string(active)); len(names) > 0 {
			return filepath.Join("/dev", names[len(names)-1])
		}
	}
	return "/dev/console"
}

// reopenConsole makes the console this process's input and output, if the kernel
// could not: the driver of a virtio console is a module, so that there was no
// console before the modules were loaded.
func reopenConsole() error {
	var console unix.Stat_t
	if err := unix.Fstat(2, &console); err != nil || console.Rdev != unix.Mkdev(1, 3) {
		return err // what the Go runtime has put there is /dev/null
	}
	fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	return errors.Join(unix.Dup2(fd, 0), unix.Dup2(fd, 1), unix.Dup2(fd, 2), unix.Close(fd))
}

// runShell runs a shell on the console, as the leader of its own session, and
// returns when it ends.
func runShell(o options, children *agent.Reaper) error {
	device := consoleDevice()
	tty, err := os.OpenFile(device, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	defer tty.Close()
	if o.rows > 0 && o.cols > 0 {
		size := &unix.Winsize{Row: o.rows, Col: o.cols}
		if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, size); err != nil {
			complain(fmt.Errorf("console: set window size: %w", err))
		}
	}
	fd := tty.Fd()
	file := shell()
	child, err := children.Start(file, []string{filepath.Base(file)}, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{fd, fd, fd},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: true},
	})
	if err != nil {
		return fmt.Errorf("console: start %s: %w", file, err)
	}
	child.Wait()
	return nil
}
