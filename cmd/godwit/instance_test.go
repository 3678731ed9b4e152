package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest/agent"
	"github.com/godwit-vmm/godwit/internal/rundir"
)

// asGodwit makes this test program be godwit.
const asGodwit = "GODWIT_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asGodwit) != "" {
		main()
		return
	}
	dir, err := os.MkdirTemp("", "godwit-test-")
	if err == nil {
		err = os.Setenv("GODWIT_RUNTIME_DIR", filepath.Join(dir, "run"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// program is godwit as a process of its own.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0], args...)
	c.Env = append(os.Environ(), asGodwit+"=1")
	return c
}

// result is what a run of godwit left.
type result struct {
	stdout, stderr string
	status         int
}

func runProgram(t *testing.T, stdin io.Reader, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	c := program(t, args...)
	c.Stdin, c.Stdout, c.Stderr = stdin, &stdout, &stderr
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), c.ProcessState.ExitCode()}
}

// fakeGuest is a guest that runs and has an agent, which is this process.
type fakeGuest struct {
	t     *testing.T
	dir   *rundir.Dir
	l     net.Listener
	conns chan net.Conn // those that the agent serves
}

func startGuest(t *testing.T, name string) *fakeGuest {
	t.Helper()
	dir, err := rundir.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", dir.Path(rundir.VsockFile))
	if err != nil {
		t.Fatal(err)
	}
	g := &fakeGuest{t: t, dir: dir, l: l, conns: make(chan net.Conn, 100)}
	t.Cleanup(func() {
		l.Close()
		dir.Close()
	})
	go g.serve()
	return g
}

// serve does what the vsock device and the agent behind it do.
func (g *fakeGuest) serve() {
	server := &agent.Server{Version: "fake", Reaper: agent.NewReaper()}
	for {
		c, err := g.l.Accept()
		if err != nil {
			return
		}
		go func() {
			line, err := bufio.NewReaderSize(c, 16).ReadString('\n')
			if err != nil || line != fmt.Sprintf("CONNECT %d\n", agent.Port) {
				c.Close()
				return
			}
			io.WriteString(c, "OK 99\n")
			g.conns <- c
			server.Serve(c)
		}()
	}
}

func (g *fakeGuest) up() *fakeGuest {
	g.t.Helper()
	if err := g.dir.SetUp(agent.Info{Hostname: "fake"}); err != nil {
		g.t.Fatal(err)
	}
	return g
}

func TestExec(t *testing.T) {
	startGuest(t, "web").up()
	startGuest(t, "booting")
	for _, tt := range []struct {
		name  string
		args  []string
		stdin string
		want  result
	}{
		{"status", []string{"web", "--", "sh", "-c", "echo out; echo err >&2; exit 5"}, "", result{"out\n", "err\n", 5}},
		{"killed", []string{"web", "--", "sh", "-c", "kill -9 $$"}, "", result{"", "", 128 + 9}},
		{"input", []string{"web", "cat"}, "hello", result{"hello", "", 0}},
		{"a shell", []string{"web"}, "echo $((6*7))\n", result{"42\n", "", 0}},
		{"environment and folder", []string{"-e", "X=1", "--workdir", "/", "web", "--", "sh", "-c", "echo $X; pwd"}, "", result{"1\n/\n", "", 0}},
		{"flags of the command", []string{"web", "echo", "x", "-e", "-t"}, "", result{"x -e -t\n", "", 0}},
		{"no such command", []string{"web", "nosuchcommand"}, "", result{"", "nosuchcommand: command not found\n", 127}},
		{"no such guest", []string{"nobody", "true"}, "", result{"", "godwit: machine nobody: is not running\n", 125}},
		{"not up", []string{"booting", "true"}, "", result{"", "godwit: guest booting runs and has not said that it is up: wait with: godwit wait booting (a system of your own needs godwit-agent)\n", 125}},
		{"no terminal", []string{"-T", "-t", "web", "true"}, "", result{"", "godwit: --tty and --no-tty exclude each other\n", 125}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := runProgram(t, strings.NewReader(tt.stdin), append([]string{"exec"}, tt.args...)...); got != tt.want {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestGuestPath(t *testing.T) {
	for s, want := range map[string][2]string{
		"web:/x": {"web", "/x"}, "web:": {"web", "."}, "web:a:b": {"web", "a:b"},
		"/x": {}, "x": {}, "./a:b": {}, "/a:b": {}, "a/b:c": {}, ":x": {}, ".x:y": {}, "": {},
	} {
		name, path, ok := guestPath(s)
		if want == ([2]string{}) {
			want = [2]string{"", s}
		}
		if name != want[0] || path != want[1] || ok != (name != "") {
			t.Errorf("%q: %q, %q, %v", s, name, path, ok)
		}
	}
}

func TestCp(t *testing.T) {
	startGuest(t, "web").up()
	dir := t.TempDir()
	if err := errors.Join(os.MkdirAll(dir+"/src/sub", 0o755), os.WriteFile(dir+"/src/sub/file", []byte("content"), 0o640), os.Symlink("sub", dir+"/src/link")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{dir + "/src", "web:" + dir + "/in"}, {"web:" + dir + "/in/.", dir + "/out"}} {
		if got := runProgram(t, nil, "cp", args[0], args[1]); got != (result{}) {
			t.Errorf("cp %v: %+v", args, got)
		}
	}
	info, err := os.Stat(dir + "/out/link/file")
	if err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v, %v", info, err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"a", "b"}, "NAME:PATH"},
		{[]string{"web:a", "web:b"}, "NAME:PATH"},
		{[]string{"web:" + dir + "/none", dir}, "no such file"},
		{[]string{dir + "/none", "web:" + dir}, "no such file"},
		{[]string{"nobody:/x", dir}, "is not running"},
		{[]string{"..:/x", dir}, "NAME:PATH"},
	} {
		if got := runProgram(t, nil, append([]string{"cp"}, tt.args...)...); got.status != 125 || !strings.Contains(got.stderr, tt.want) {
			t.Errorf("cp %v: %+v, want %q", tt.args, got, tt.want)
		}
	}
}

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	p := &progress{out: &out, start: time.Now().Add(-2 * time.Second), total: 4 << 20}
	for range 10 {
		p.show(agent.Copied{Files: 3, Bytes: 1 << 20})
	}
	p.clear()
	if got := out.String(); !strings.HasPrefix(got, "\r3 files, 1.0 MiB of 4.0 MiB (25%), 512.0 KiB/s") || strings.Count(got, "files") != 1 || !strings.HasSuffix(got, "\r\x1b[K") {
		t.Errorf("showed %q", got)
	}
	out.Reset()
	p = &progress{out: &out, start: time.Now()}
	p.show(agent.Copied{})
	p.clear()
	if out.Len() > 0 {
		t.Errorf("a short copy showed %q", out.String())
	}
	for n, want := range map[float64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 30: "1.0 GiB", 1 << 60: "1048576.0 TiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%v: %s, want %s", n, got, want)
		}
	}
}

func TestWait(t *testing.T) {
	g := startGuest(t, "web")
	if got := runProgram(t, nil, "wait", "web", "--timeout", "20ms"); got.status != 125 || !strings.Contains(got.stderr, "not up within 20ms") {
		t.Errorf("in vain: %+v", got)
	}
	waited := make(chan error, 1)
	go func() { waited <- wait(t.Context(), "web", time.Minute) }()
	g.up()
	if err := <-waited; err != nil {
		t.Error(err)
	}
	// One that is only started now.
	go func() { waited <- wait(t.Context(), "later", time.Minute) }()
	startGuest(t, "later").up()
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if got := runProgram(t, nil, "wait", "bad/name"); got.status != 125 || !strings.Contains(got.stderr, "want up to") {
		t.Errorf("a bad name: %+v", got)
	}
}

// ringBell does what a guest does that is up, or pretends to be.
func ringBell(t *testing.T, i *instance) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", fmt.Sprintf("%s_%d", i.vsock, agent.Port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := c.Write([]byte{agent.Hello}); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestInstance leads a guest through its life, as others see it.
func TestInstance(t *testing.T) {
	i, err := newInstance(naming{name: "inst"})
	if err != nil {
		t.Fatal(err)
	}
	if other, err := newInstance(naming{name: "inst"}); err != nil || other.name != "inst-2" {
		t.Errorf("a second one is called %+v, %v", other, err)
	} else if err := other.close(); err != nil {
		t.Error(err)
	}
	if _, err := newInstance(naming{name: "inst", named: true, needed: true}); !errors.Is(err, rundir.ErrRunning) {
		t.Errorf("a second one that wants this name: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	watched, ups, answers := make(chan error, 1), make(chan struct{}, 10), make(chan struct{}, 10)
	i.answers = func() { answers <- struct{}{} }
	go func() { watched <- i.watch(ctx, func() error { ups <- struct{}{}; return nil }) }()
	vm, err := rundir.Open("inst")
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	upIs := func(want bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			up, err := vm.Up(nil)
			if up == want && err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("up is %v, %v, want %v", up, err, want)
			}
		}
	}
	// A false alarm: nobody listens at the agent's port.
	alarm := ringBell(t, i)
	if _, err := alarm.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a false alarm: %v", err)
	}
	upIs(false)
	// The device, and the agent behind it, as in TestExec.
	l, err := net.Listen("unix", i.vsock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := &fakeGuest{t: t, l: l, conns: make(chan net.Conn, 100)}
	go g.serve()
	for range 2 { // the second time after a reboot
		bell := ringBell(t, i)
		upIs(true)
		bell.Close()
		upIs(false)
	}
	if len(ups) != 1 || len(answers) != 2 {
		t.Errorf("told %d times that it is up for the first time, want once, and %d times that it answers, want twice", len(ups), len(answers))
	}
	cancel()
	if err := <-watched; err != nil {
		t.Error(err)
	}
	if err := i.close(); err != nil {
		t.Error(err)
	}
	if _, err := rundir.Open("inst"); !errors.Is(err, rundir.ErrNotRunning) {
		t.Errorf("after its end: %v", err)
	}
}

func TestVsockFlag(t *testing.T) {
	i, err := newInstance(naming{name: "none", vsock: vsockOff})
	if err != nil || i.vsock != "" || i.bell != nil {
		t.Errorf("off: %+v, %v", i, err)
	}
	if err := i.watch(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if err := i.close(); err != nil {
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "v")
	if i, err = newInstance(naming{name: "own", vsock: path}); err != nil || i.vsock != path {
		t.Fatalf("a path: %+v, %v", i, err)
	}
	vm, err := rundir.Open("own")
	if err != nil || vm.VsockPath() != path {
		t.Errorf("found at %v, %v", vm, err)
	}
	vm.Close()
	if err := i.close(); err != nil {
		t.Error(err)
	}
	if _, err := newInstance(naming{name: "own", vsock: path + "/none"}); err == nil {
		t.Error("a path that cannot be: no error")
	}
	if _, err := rundir.Open("own"); !errors.Is(err, rundir.ErrNotRunning) {
		t.Errorf("left behind: %v", err)
	}
	// Where no folder can be made a guest without a name does without.
	t.Setenv("GODWIT_RUNTIME_DIR", "/proc/none")
	if i, err := newInstance(naming{name: "x"}); err != nil || i.vsock != "" {
		t.Errorf("no folder: %+v, %v", i, err)
	}
	if _, err := newInstance(naming{name: "x", named: true, needed: true}); err == nil {
		t.Error("no folder for a name: no error")
	}
}
