package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// connect starts a server and connects a client to it.
func connect(t *testing.T) *Client {
	t.Helper()
	near, far := net.Pipe()
	serve(t, far, nil)
	return dialTest(t, near)
}

func serve(t *testing.T, rw io.ReadWriteCloser, shutdown func(bool) error) {
	t.Helper()
	server := &Server{Version: "test", Reaper: NewReaper(), Shutdown: shutdown}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(rw)
	}()
	t.Cleanup(func() {
		rw.Close()
		<-done
	})
}

func dialTest(t *testing.T, rw io.ReadWriteCloser) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := Dial(ctx, rw)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestRun(t *testing.T) {
	c := connect(t)
	tests := []struct {
		name   string
		cmd    Command
		stdin  string
		status int
		stdout string
		stderr string
	}{
		{"output", Command{Args: []string{"sh", "-c", "echo out; echo err >&2"}}, "", 0, "out\n", "err\n"},
		{"status", Command{Args: []string{"sh", "-c", "exit 3"}}, "", 3, "", ""},
		{"killed", Command{Args: []string{"sh", "-c", "kill -TERM $$"}}, "", 128 + 15, "", ""},
		{"input", Command{Args: []string{"cat"}}, strings.Repeat("x", 3*windowSize), 0, strings.Repeat("x", 3*windowSize), ""},
		{"input not read", Command{Args: []string{"true"}}, strings.Repeat("x", 3*windowSize), 0, "", ""},
		{"environment", Command{Args: []string{"sh", "-c", "echo $A $HOME"}, Env: []string{"A=1", "HOME=/x"}}, "", 0, "1 /x\n", ""},
		{"folder", Command{Args: []string{"pwd"}, Dir: "/"}, "", 0, "/\n", ""},
		{"no folder", Command{Args: []string{"pwd"}, Dir: "/nonexistent"}, "", 126, "", "pwd: working directory: stat /nonexistent: no such file or directory\n"},
		{"no command", Command{Args: []string{"nosuchcommand"}}, "", 127, "", "nosuchcommand: command not found\n"},
		{"no file", Command{Args: []string{"/nonexistent"}}, "", 127, "", "/nonexistent: stat /nonexistent: no such file or directory\n"},
		{"not executable", Command{Args: []string{"/etc/passwd"}}, "", 126, "", "/etc/passwd: permission denied\n"},
		{"left behind", Command{Args: []string{"sh", "-c", "sleep 60 & echo $!"}}, "", 0, "pid", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			cmd := test.cmd
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(test.stdin), &out, &errs
			exit, err := c.Run(testContext(t), cmd)
			if err != nil {
				t.Fatal(err)
			}
			if test.stdout == "pid" {
				var pid int
				if _, err := fmt.Sscan(out.String(), &pid); err != nil {
					t.Fatalf("output %q: %v", out.String(), err)
				}
				syscall.Kill(pid, syscall.SIGKILL)
				test.stdout = out.String()
			}
			if exit.Status() != test.status || out.String() != test.stdout || errs.String() != test.stderr {
				t.Errorf("%v, output %.200q, errors %q; want %d, %.200q, %q", exit, out.String(), errs.String(), test.status, test.stdout, test.stderr)
			}
		})
	}
}

func TestInfo(t *testing.T) {
	info := connect(t).Info()
	host, _ := os.Hostname()
	if info.Version != "test" || info.Hostname != host || info.Kernel == "" {
		t.Errorf("got %+v", info)
	}
}

func TestTerminal(t *testing.T) {
	c := connect(t)
	var out bytes.Buffer
	exit, err := c.Run(testContext(t), Command{
		Args:   []string{"sh", "-c", "tty >/dev/null && stty size && read x && echo got $x && exit 4"},
		TTY:    &Size{Rows: 33, Cols: 99},
		Stdin:  strings.NewReader("hello\n"),
		Stdout: &out,
	})
	if err != nil {
		t.Fatal(err)
	}
	if exit.Code != 4 || !strings.Contains(out.String(), "33 99\r\n") || !strings.Contains(out.String(), "got hello\r\n") {
		t.Errorf("%v, output %q", exit, out.String())
	}
}

func TestResize(t *testing.T) {
	c := connect(t)
	stdin, feed := io.Pipe()
	defer feed.Close()
	r, w := io.Pipe()
	p, err := c.Start(Command{
		Args:  []string{"sh", "-c", "stty -echo; echo ready; read x; stty size"},
		TTY:   &Size{Rows: 10, Cols: 20},
		Stdin: stdin, Stdout: w,
	})
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len("ready\r\n"))
	if _, err := io.ReadFull(r, buf); err != nil {
		t.Fatal(err)
	}
	if err := p.Resize(Size{Rows: 11, Cols: 22}); err != nil {
		t.Fatal(err)
	}
	go io.WriteString(feed, "\n")
	buf = make([]byte, len("11 22\r\n"))
	if _, err := io.ReadFull(r, buf); err != nil || string(buf) != "11 22\r\n" {
		t.Errorf("size %q, %v", buf, err)
	}
	if _, err := p.Wait(); err != nil {
		t.Error(err)
	}
}

// A session whose output nobody reads must not hold up another one.
func TestSlowReaderHoldsUpOnlyItself(t *testing.T) {
	c := connect(t)
	r, w := io.Pipe() // nobody reads yet
	slow, err := c.Start(Command{Args: []string{"head", "-c", "1000000", "/dev/zero"}, Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		var out bytes.Buffer
		if _, err := c.Run(testContext(t), Command{Args: []string{"head", "-c", "300000", "/dev/zero"}, Stdout: &out}); err != nil || out.Len() != 300000 {
			t.Fatalf("%d bytes, %v", out.Len(), err)
		}
	}
	go func() {
		slow.Wait()
		w.Close()
	}()
	if n, err := io.Copy(io.Discard, r); n != 1000000 || err != nil {
		t.Errorf("the slow one: %d bytes, %v", n, err)
	}
}

func TestManySessionsAtOnce(t *testing.T) {
	c := connect(t)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			want := strings.Repeat(fmt.Sprint(i), 20000)
			var out bytes.Buffer
			exit, err := c.Run(testContext(t), Command{
				Args: []string{"sh", "-c", fmt.Sprintf("cat; exit %d", i)}, Stdin: strings.NewReader(want), Stdout: &out,
			})
			if err != nil || exit.Code != i || out.String() != want {
				t.Errorf("session %d: %v, %v, %d bytes of %d", i, exit, err, out.Len(), len(want))
			}
		})
	}
	wg.Wait()
}

func TestSignal(t *testing.T) {
	c := connect(t)
	r, w := io.Pipe()
	p, err := c.Start(Command{Args: []string{"sh", "-c", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done"}, Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if exit, err := p.Wait(); err != nil || exit.Code != 9 {
		t.Errorf("%v, %v", exit, err)
	}
}

func TestContextKillsTheCommand(t *testing.T) {
	c := connect(t)
	ctx, cancel := context.WithCancel(testContext(t))
	r, w := io.Pipe()
	go func() {
		io.ReadFull(r, make([]byte, 1))
		cancel()
	}()
	exit, err := c.Run(ctx, Command{Args: []string{"sh", "-c", "echo; sleep 60"}, Stdout: w})
	if !errors.Is(err, context.Canceled) || exit.Signal != int(syscall.SIGKILL) {
		t.Errorf("%v, %v", exit, err)
	}
	if err := c.Ping(testContext(t)); err != nil {
		t.Errorf("the connection does not work any more: %v", err)
	}
}

// hangingLine is a line whose other end stops reading and writing.
type hangingLine struct {
	net.Conn
	hung atomic.Bool
}

func (l *hangingLine) Write(b []byte) (int, error) {
	if l.hung.Load() {
		return len(b), nil // lost
	}
	return l.Conn.Write(b)
}

func TestContextEndsACommandOnAHungServer(t *testing.T) {
	near, far := net.Pipe()
	serve(t, far, nil)
	line := &hangingLine{Conn: near}
	c := dialTest(t, line)
	c.patience = 20 * time.Millisecond
	ctx, cancel := context.WithCancel(testContext(t))
	r, w := io.Pipe()
	go func() {
		io.ReadFull(r, make([]byte, 1))
		line.hung.Store(true)
		cancel()
	}()
	if _, err := c.Run(ctx, Command{Args: []string{"sh", "-c", "echo; sleep 60"}, Stdout: w}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-c.Done()
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, os.ErrPermission }

func TestOutputThatFailsEndsTheCommand(t *testing.T) {
	c := connect(t)
	_, err := c.Run(testContext(t), Command{Args: []string{"yes"}, Stdout: failingWriter{}})
	if !errors.Is(err, os.ErrPermission) {
		t.Errorf("got %v", err)
	}
}

func TestPutAndGet(t *testing.T) {
	c := connect(t)
	file := filepath.Join(t.TempDir(), "new", "file")
	content := bytes.Repeat([]byte("0123456789"), 50000)
	if err := c.Put(testContext(t), file, 0o750, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	mode, err := c.Get(testContext(t), file, &got)
	if err != nil || mode != 0o750 || !bytes.Equal(got.Bytes(), content) {
		t.Errorf("got %d bytes, mode %v, %v", got.Len(), mode, err)
	}
	if _, err := c.Get(testContext(t), "/nonexistent", io.Discard); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("get of no file: %v", err)
	}
	if err := c.Put(testContext(t), filepath.Dir(file), 0o600, strings.NewReader("x")); err == nil || !strings.Contains(err.Error(), "directory") {
		t.Errorf("put on a folder: %v", err)
	}
	if err := c.Put(testContext(t), file, 0o600, io.MultiReader(strings.NewReader("half"), brokenReader{})); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("put of a source that breaks: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Dir(file)); len(left) != 1 {
		t.Errorf("the broken put left %v", left)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, os.ErrInvalid }

// noisyPipe is one end of a serial line on which the kernel has printed.
type noisyPipe struct {
	net.Conn
	noise io.Reader
}

func (p *noisyPipe) Read(b []byte) (int, error) {
	if n, err := p.noise.Read(b); n > 0 {
		return n, err
	}
	return p.Conn.Read(b)
}

func TestNoiseInFrontIsSkipped(t *testing.T) {
	near, far := net.Pipe()
	noise := "[    1.2] random: crng init done\r\n\xf5GODWI"
	serve(t, &noisyPipe{far, strings.NewReader(noise)}, nil)
	c := dialTest(t, &noisyPipe{near, strings.NewReader(noise + noise)})
	if err := c.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}

// A server whose beacon went to somebody else is asked all the same.
func TestClientAsksWithoutBeacon(t *testing.T) {
	near, far := net.Pipe()
	go func() {
		io.ReadFull(far, make([]byte, preambleSize))
		serve(t, far, nil)
	}()
	c := dialTest(t, near)
	if err := c.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}

// TestTerminalEcho has a line that echoes what the client says until the server
// has opened it, cut short, as a serial port in line editing mode does.
func TestTerminalEcho(t *testing.T) {
	hello := preamble{role: roleClient, nonce: newNonce()}.bytes()
	for cut := range len(hello) + 1 {
		near, far := net.Pipe()
		serve(t, &noisyPipe{far, bytes.NewReader(hello[cut:])}, nil)
		c := dialTest(t, &noisyPipe{near, bytes.NewReader(hello[:cut])})
		if err := c.Ping(testContext(t)); err != nil {
			t.Errorf("echo cut after %d bytes: %v", cut, err)
		}
	}
}

func TestSecondClientTakesOver(t *testing.T) {
	near, far := net.Pipe()
	serve(t, far, nil)
	line := &keepOpen{Conn: near, left: make(chan struct{})}
	first := dialTest(t, line)
	r, w := io.Pipe()
	if _, err := first.Start(Command{Args: []string{"sh", "-c", "echo $$; exec sleep 60"}, Stdout: w}); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(r, &pid); err != nil {
		t.Fatal(err)
	}
	first.Close() // the line stays
	<-line.left
	second := dialTest(t, near)
	if err := second.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the first client's command still runs: %v", err)
	}
}

// keepOpen is a client's view of a line: closing it leaves the line open.
type keepOpen struct {
	net.Conn
	closed atomic.Bool
	left   chan struct{} // closed when the client reads no more
}

func (k *keepOpen) Read(b []byte) (int, error) {
	for !k.closed.Load() {
		k.Conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		n, err := k.Conn.Read(b)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
	}
	k.Conn.SetReadDeadline(time.Time{})
	close(k.left)
	return 0, io.EOF
}

func (k *keepOpen) Close() error {
	k.closed.Store(true)
	return nil
}

func TestClosedConnectionEndsSessions(t *testing.T) {
	near, far := net.Pipe()
	serve(t, far, nil)
	c := dialTest(t, near)
	p, err := c.Start(Command{Args: []string{"sleep", "60"}})
	if err != nil {
		t.Fatal(err)
	}
	far.Close()
	if _, err := p.Wait(); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	<-c.Done()
	if _, err := c.Run(testContext(t), Command{Args: []string{"true"}}); !errors.Is(err, ErrClosed) {
		t.Errorf("after that: %v", err)
	}
	if err := c.Ping(testContext(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("ping after that: %v", err)
	}
}

func TestShutdown(t *testing.T) {
	near, far := net.Pipe()
	asked := make(chan bool)
	serve(t, far, func(reboot bool) error {
		asked <- reboot
		return nil
	})
	c := dialTest(t, near)
	if err := c.Reboot(); err != nil || !<-asked {
		t.Errorf("reboot: %v", err)
	}
	if err := c.Poweroff(); err != nil || <-asked {
		t.Errorf("power off: %v", err)
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	go io.Copy(io.Discard, far) // never answers
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, near); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestTooLargeACommandLine(t *testing.T) {
	c := connect(t)
	_, err := c.Run(testContext(t), Command{Args: []string{"echo", strings.Repeat("x", maxPayload)}})
	if err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("got %v", err)
	}
	if err := c.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}
