package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"golang.org/x/sys/unix"
)

// window is a terminal with godwit in it.
type window struct {
	// before is the mode that the terminal had first.
	before unix.Termios
	t      *testing.T
	master *os.File // what a user sees and types
	slave  *os.File
	cmd    *exec.Cmd

	mu   sync.Mutex
	said strings.Builder
	more chan struct{}
}

// openWindow runs godwit in a terminal of 30 rows and 90 columns.
func openWindow(t *testing.T, args ...string) *window {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	fd := int(master.Fd())
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &window{t: t, master: master, more: make(chan struct{}, 1)}
	w.size(30, 90)
	if w.slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	w.before = w.mode()
	w.cmd = program(t, args...)
	w.cmd.Stdin, w.cmd.Stdout, w.cmd.Stderr = w.slave, w.slave, w.slave
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.cmd.Process.Kill()
		w.cmd.Wait()
		w.slave.Close()
		w.master.Close()
	})
	go w.read()
	return w
}

func (w *window) read() {
	p := make([]byte, 4096)
	for {
		n, err := w.master.Read(p)
		w.mu.Lock()
		w.said.Write(p[:n])
		w.mu.Unlock()
		select {
		case w.more <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

func (w *window) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.said.String()
}

// expect waits until the terminal shows something.
func (w *window) expect(pattern string) {
	w.t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.After(20 * time.Second)
	for !re.MatchString(w.text()) {
		select {
		case <-w.more:
		case <-deadline:
			w.t.Fatalf("the terminal never showed %q:\n%s", pattern, w.text())
		}
	}
}

func (w *window) typeKeys(keys string) {
	w.t.Helper()
	if _, err := io.WriteString(w.master, keys); err != nil {
		w.t.Fatal(err)
	}
}

func (w *window) size(rows, cols uint16) {
	w.t.Helper()
	if err := unix.IoctlSetWinsize(int(w.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *window) mode() unix.Termios {
	w.t.Helper()
	m, err := unix.IoctlGetTermios(int(w.slave.Fd()), unix.TCGETS)
	if err != nil {
		w.t.Fatal(err)
	}
	return *m
}

// end waits for godwit's end and gives its exit status.
func (w *window) end() int {
	w.t.Helper()
	err := w.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatal(err)
	}
	return w.cmd.ProcessState.ExitCode()
}

// TestExecTerminal runs commands in a terminal, which is as it was after each of
// the ways to end.
func TestExecTerminal(t *testing.T) {
	g := startGuest(t, "tty").up()
	const ready = "stty size; echo read''y; "
	for _, tt := range []struct {
		name   string
		script string
		do     func(w *window)
		status int
		shows  string
	}{
		{"command ends", ready + "read x; echo got $x; exit 6", func(w *window) { w.typeKeys("keys\r") }, 6, "30 90\r\n(?s:.*)got keys\r\n"},
		{"new size", ready + "trap 'stty size; exit 7' WINCH; echo trapp''ed; while :; do sleep 0.01; done", func(w *window) {
			w.expect("trapped")
			w.size(31, 91)
		}, 7, "31 91\r\n"},
		// A shell that is just about to execute something may lose the signal.
		{"interrupt key", ready + "read x", func(w *window) { w.typeKeys("\x03") }, 130, ""},
		{"break off", ready + "sleep 100", func(w *window) { w.typeKeys("\r~.") }, 125, "connection to guest tty is gone"},
		{"SIGTERM", ready + "trap 'exit 8' TERM; echo trapp''ed; while :; do sleep 0.01; done", func(w *window) {
			w.expect("trapped")
			w.cmd.Process.Signal(syscall.SIGTERM)
		}, 8, ""},
		{"SIGHUP", ready + "sleep 100", func(w *window) { w.cmd.Process.Signal(syscall.SIGHUP) }, 125, "connection"},
		{"the guest is gone", ready + "sleep 100", func(w *window) {
			for len(g.conns) > 1 {
				<-g.conns
			}
			(<-g.conns).Close()
		}, 125, "connection to guest tty is gone"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := openWindow(t, "exec", "tty", "--", "sh", "-c", tt.script)
			w.expect("ready\r\n")
			if raw := w.mode(); raw.Lflag&unix.ICANON != 0 {
				t.Error("the terminal is not in raw mode while the command runs")
			}
			tt.do(w)
			if status := w.end(); status != tt.status {
				t.Errorf("status %d, want %d; shown:\n%s", status, tt.status, w.text())
			}
			w.expect(tt.shows)
			if after := w.mode(); after != w.before {
				t.Errorf("the terminal was left in another mode: %+v, was %+v", after, w.before)
			}
		})
	}
}

// TestBackgroundJob: a command in the background of a shell leaves the terminal
// alone.
func TestExecWithoutTerminal(t *testing.T) {
	startGuest(t, "notty").up()
	w := openWindow(t, "exec", "--no-tty", "notty", "--", "sh", "-c", "test -t 0 || echo no term''inal")
	if status := w.end(); status != 0 {
		t.Errorf("status %d", status)
	}
	w.expect("no terminal")
	if after := w.mode(); after != w.before {
		t.Error("the terminal was left in another mode")
	}
}
