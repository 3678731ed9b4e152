package main

import (
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
	child, err := children.Start("/bin/sh", []string{"sh"}, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{fd, fd, fd},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: true},
	})
	if err != nil {
		return fmt.Errorf("console: start /bin/sh: %w", err)
	}
	child.Wait()
	return nil
}
