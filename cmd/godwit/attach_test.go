package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"golang.org/x/sys/unix"
)

func TestDetachKeys(t *testing.T) {
	for _, tt := range []struct {
		name   string
		typed  []string // one element a read
		want   string
		detach bool
	}{
		{"plain", []string{"ls d\r"}, "ls d\r", false},
		{"detach", []string{"ab\x01dcd"}, "ab", true},
		{"capital", []string{"\x01D"}, "", true},
		{"in two reads", []string{"ab\x01", "d"}, "ab", true},
		{"as boot quits", []string{"ab\x01xcd"}, "ab", true},
		{"one for the guest", []string{"\x01\x01d"}, "\x01d", false},
		{"other key", []string{"\x01", "bd"}, "\x01bd", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var e escape
			got, detach := "", false
			for _, read := range tt.typed {
				var out []byte
				out, detach = detachKeys(&e, []byte(read))
				if got += string(out); detach {
					break
				}
			}
			if got != tt.want || detach != tt.detach {
				t.Errorf("%q, detach %v, want %q, %v", got, detach, tt.want, tt.detach)
			}
		})
	}
}

// screen is a terminal in which a test attaches to a console.
type screen struct {
	t             *testing.T
	master, slave *os.File
	shown         *lines
	before        unix.Termios
	more          chan struct{}
	done          chan error
}

// attachScreen attaches a terminal to the console of a guest.
func attachScreen(t *testing.T, ctx context.Context, name string) *screen {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	n, err := unix.IoctlGetUint32(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &screen{t: t, master: master, slave: slave, more: make(chan struct{}, 1), done: make(chan error, 1)}
	s.shown = &lines{each: func(string) {
		select {
		case s.more <- struct{}{}:
		default:
		}
	}}
	s.before = s.mode()
	go func() { s.done <- openConsole(ctx, name, slave, s.shown, s.shown) }()
	t.Cleanup(func() {
		// What attach left behind reads until its terminal hangs up.
		master.Close()
		slave.Close()
	})
	return s
}

// expect waits until the terminal shows something.
func (s *screen) expect(text string) {
	s.t.Helper()
	deadline := time.After(20 * time.Second)
	for !strings.Contains(s.shown.String(), text) {
		select {
		case <-s.more:
		case <-deadline:
			s.t.Fatalf("the terminal never showed %q:\n%s", text, s.shown)
		}
	}
}

func (s *screen) mode() unix.Termios {
	s.t.Helper()
	m, err := unix.IoctlGetTermios(int(s.slave.Fd()), unix.TCGETS)
	if err != nil {
		s.t.Fatal(err)
	}
	return *m
}

// TestConsoleTerminal detaches in all ways; the terminal is as it was, and the
// guest goes on, except in the last one.
func TestConsoleTerminal(t *testing.T) {
	ownGuests(t)
	v, stop, err := newFakeVMM("web")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { stop() }()
	fmt.Fprint(v.console, "Linux version 6.1\r\n")
	for _, tt := range []struct {
		name  string
		do    func(s *screen, cancel func())
		shows string
	}{
		{"Ctrl-a d", func(s *screen, _ func()) { io.WriteString(s.master, "\x01d") }, "godwit: detached from web, which goes on\n"},
		{"Ctrl-a x", func(s *screen, _ func()) { io.WriteString(s.master, "\x01x") }, "godwit: detached from web, which goes on\n"},
		{"a signal", func(_ *screen, cancel func()) { cancel() }, "godwit: detached from web, which goes on\n"},
		{"end of the guest", func(*screen, func()) { stop(); stop = func() {} }, "godwit: guest web has ended\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s := attachScreen(t, ctx, "web")
			s.expect("godwit: console of web; Ctrl-a d detaches\r\n")
			s.expect("Linux version 6.1\r\n")
			if raw := s.mode(); raw.Lflag&unix.ICANON != 0 {
				t.Error("the terminal is not in raw mode")
			}
			// One read of keys, as they are typed: Ctrl-c is the guest's.
			io.WriteString(s.master, "\x03")
			if got := <-v.typed; got != "\x03" {
				t.Errorf("the guest got %q", got)
			}
			tt.do(s, cancel)
			if err := <-s.done; err != nil {
				t.Errorf("ended with %v", err)
			}
			s.expect(tt.shows)
			if after := s.mode(); after != s.before {
				t.Errorf("the terminal was left in another mode: %+v, was %+v", after, s.before)
			}
		})
	}
}

// TestConsolePipe: input goes to the guest as it is, and output comes until the
// guest ends, whenever the input does.
func TestConsolePipe(t *testing.T) {
	ownGuests(t)
	v, stop, err := newFakeVMM("web")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(v.console, "login: ")
	in, typed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	io.WriteString(typed, "root\x01d\n")
	typed.Close()
	go func() {
		if got := <-v.typed; got != "root\x01d\n" {
			t.Errorf("the guest got %q", got)
		}
		fmt.Fprint(v.console, "welcome\r\n")
		stop()
	}()
	var out, messages bytes.Buffer
	if err := openConsole(t.Context(), "web", in, &out, &messages); err != nil {
		t.Error(err)
	}
	if out.String() != "login: welcome\r\n" || messages.Len() > 0 {
		t.Errorf("shown %q, said %q", out.String(), messages.String())
	}
}

// TestConsoleOfKilled ends like that of a guest that ended.
func TestConsoleOfKilled(t *testing.T) {
	ownGuests(t)
	c := startProcess(t, "web", obedient)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	out := &lines{each: func(string) { c.Process.Kill() }}
	if err := openConsole(t.Context(), "web", null, out, io.Discard); err != nil || out.String() != "booting\r\n" {
		t.Errorf("shown %q, %v", out, err)
	}
	if _, _, err := runCobra(t, newAttach(), "nobody"); err == nil || err.Error() != "guest nobody is not running: godwit ps lists those that are" {
		t.Errorf("no such guest: %v", err)
	}
}
