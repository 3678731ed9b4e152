package agent

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// stdio are both ends of a command's standard streams: three pipes, or one
// terminal.
type stdio struct {
	input    *os.File // the agent's end
	outputs  []output
	child    [3]*os.File // the command's ends
	terminal *os.File    // the agent's end of the terminal, nil with pipes
	opened   []*os.File
}

type output struct {
	stream stream
	file   *os.File
}

func openStdio(tty *Size) (*stdio, error) {
	std := &stdio{}
	open := std.openPipes
	if tty != nil {
		open = func() error { return std.openTerminal(*tty) }
	}
	if err := open(); err != nil {
		std.close()
		return nil, err
	}
	return std, nil
}

func (std *stdio) openPipes() error {
	for i := range std.child {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		std.opened = append(std.opened, r, w)
		if i == 0 {
			std.child[i], std.input = r, w
		} else {
			std.child[i] = w
			std.outputs = append(std.outputs, output{stdout + stream(i-1), r})
		}
	}
	return nil
}

// openTerminal opens a new pseudoterminal (pty(7)).
func (std *stdio) openTerminal(size Size) error {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	// Non-blocking, so that reads can have a deadline.
	std.terminal = os.NewFile(uintptr(fd), "/dev/ptmx")
	std.opened = append(std.opened, std.terminal)
	number, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock a terminal: %w", err)
	}
	if err := setSize(std.terminal, size); err != nil {
		return fmt.Errorf("set the size of a terminal: %w", err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.FormatUint(uint64(number), 10), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	std.opened = append(std.opened, slave)
	std.input = std.terminal
	std.outputs = []output{{stdout, std.terminal}}
	std.child = [3]*os.File{slave, slave, slave}
	return nil
}

func (std *stdio) childFiles() []uintptr {
	var fds []uintptr
	for _, f := range std.child {
		fds = append(fds, f.Fd())
	}
	return fds
}

// attributes make the command the leader of a group of its own, which signals
// go to, and with a terminal of a session that the terminal controls.
func (std *stdio) attributes() *syscall.SysProcAttr {
	if std.terminal != nil {
		return &syscall.SysProcAttr{Setsid: true, Setctty: true}
	}
	return &syscall.SysProcAttr{Setpgid: true}
}

// closeChildEnds leaves the command's ends to the command, so that their end
// can be noticed.
func (std *stdio) closeChildEnds() {
	for _, f := range std.child {
		f.Close() // a terminal's is closed once, then refuses
	}
}

// endInput tells the command that there is no more input.
func (std *stdio) endInput() {
	if std.terminal == nil {
		std.input.Close()
		return
	}
	// A terminal stays open for its output. End of file is what ^D gives
	// a program that reads lines; it is best effort for any other.
	if _, err := std.terminal.Write([]byte{4}); err != nil && !errors.Is(err, os.ErrClosed) {
		return // the command has closed its end
	}
}

func (std *stdio) close() {
	for _, f := range std.opened {
		f.Close() // twice is harmless
	}
}
