// Package tests has the whole-system tests: stock kernels, hostile guests, the
// command line. They run the godwit binary as a user does, on this machine if
// its KVM is hardware, else in one emulated host that all tests share.
//
// A test is a few lines: boot with this, expect that.
//
//	r := boot(t, "--cpus", "2", "--", "nproc")
//	r.expect(t, 0, "2\n")
package tests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest"
	"github.com/godwit-vmm/godwit/guest/agent"
	"github.com/godwit-vmm/godwit/internal/doctor"
	"github.com/godwit-vmm/godwit/internal/lab"
	"github.com/godwit-vmm/godwit/internal/testenv"
)

// bootTimeout bounds one run of godwit. A boot takes seconds; this is for a
// machine that does much else.
const bootTimeout = 90 * time.Second

// runner starts the godwit binary somewhere.
type runner interface {
	start(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, args ...string) (process, error)
}

// process is a running godwit. It is killed when the context of its start ends.
type process interface {
	Signal(syscall.Signal) error
	// Wait gives the exit status.
	Wait() (int, error)
}

// run runs godwit to its end, or kills it after bootTimeout.
func run(ctx context.Context, r runner, stdin io.Reader, stdout, stderr io.Writer, args ...string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	p, err := r.start(ctx, stdin, stdout, stderr, args...)
	if err != nil {
		return 0, err
	}
	status, err := p.Wait()
	if e, ok := r.(*emulated); ok && errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w; the host:\n%s", err, e.autopsy())
	}
	return status, err
}

// result is what a run of godwit left.
type result struct {
	args           []string
	stdout, stderr string
	status         int
}

// godwit runs the binary with the given input until it ends.
func godwit(t *testing.T, stdin io.Reader, args ...string) result {
	t.Helper()
	r, release := host(t)
	defer release()
	var stdout, stderr bytes.Buffer
	status, err := run(t.Context(), r, stdin, &stdout, &stderr, args...)
	if err != nil {
		t.Fatalf("godwit %s: %v\nstdout:\n%s\nstderr:\n%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return result{args, stdout.String(), stderr.String(), status}
}

// boot runs "godwit boot" without input.
func boot(t *testing.T, args ...string) result {
	t.Helper()
	return godwit(t, nil, append([]string{"boot"}, args...)...)
}

// console runs "godwit boot" with a console on which script types: each step
// waits for a text and then types one.
func console(t *testing.T, script []step, args ...string) result {
	t.Helper()
	r, release := host(t)
	defer release()
	in := newTypist(script)
	var stderr bytes.Buffer
	status, err := run(t.Context(), r, in, in, &stderr, append([]string{"boot"}, args...)...)
	in.Close()
	if err != nil {
		t.Fatalf("godwit boot %s: %v\nconsole:\n%s\nstderr:\n%s", strings.Join(args, " "), err, in.text(), stderr.String())
	}
	if left := in.left(); left != nil {
		t.Errorf("the console never said %q", left.wait)
	}
	return result{append([]string{"boot"}, args...), in.text(), stderr.String(), status}
}

// expect checks the exit status and that stdout is exactly want.
func (r result) expect(t *testing.T, status int, want string) {
	t.Helper()
	if r.status != status || r.stdout != want {
		t.Errorf("%s, want status %d and stdout %q", r, status, want)
	}
}

// expectError checks for a failure of godwit's own whose message has want in
// it.
func (r result) expectError(t *testing.T, want string) {
	t.Helper()
	if r.status != 125 || !strings.Contains(r.stderr, want) {
		t.Errorf("%s, want status 125 and %q on stderr", r, want)
	}
}

func (r result) String() string {
	return fmt.Sprintf("godwit %s: status %d\nstdout: %q\nstderr: %q", strings.Join(r.args, " "), r.status, r.stdout, r.stderr)
}

// step of a console script.
type step struct{ wait, send string }

// typist is a console's reader and writer: it types the next step's text when
// the console has said what the step waits for.
type typist struct {
	mu     sync.Mutex
	said   bytes.Buffer
	seen   int // how much of said the steps so far have used
	script []step
	done   chan struct{} // closed when the script is at its end
	typed  *io.PipeWriter
	*io.PipeReader
}

func newTypist(script []step) *typist {
	r, w := io.Pipe()
	return &typist{script: script, done: make(chan struct{}), typed: w, PipeReader: r}
}

func (c *typist) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.said.Write(p)
	for len(c.script) > 0 {
		i := bytes.Index(c.said.Bytes()[c.seen:], []byte(c.script[0].wait))
		if i < 0 {
			break
		}
		c.seen += i + len(c.script[0].wait)
		send := c.script[0].send
		if c.script = c.script[1:]; len(c.script) == 0 {
			close(c.done)
		}
		// The reader takes its time; the console goes on meanwhile.
		go io.WriteString(c.typed, send)
	}
	return len(p), nil
}

func (c *typist) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.said.String()
}

func (c *typist) left() *step {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.script) == 0 {
		return nil
	}
	return &c.script[0]
}

// hosts is how many emulated hosts the tests share. Each has one processor,
// because QEMU's emulation of several at once is not steady: see internal/lab.
const hosts = 2

// shared is what all tests run on, made when the first one needs it.
var shared struct {
	once    sync.Once
	runners chan runner // those that are free
	close   func() error
	err     error
}

// host waits for a place where godwit boots Linux, for this test alone until
// release. It skips the test where that cannot be.
func host(t *testing.T) (_ runner, release func()) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a stock kernel: not in -short")
	}
	shared.once.Do(func() { shared.runners, shared.close, shared.err = startHosts() })
	var missing *missingError
	if errors.As(shared.err, &missing) {
		testenv.Lacks(t, "%v", shared.err)
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	r := <-shared.runners
	return r, func() { shared.runners <- r }
}

// missingError says what a machine lacks for these tests.
type missingError struct{ err error }

func (e *missingError) Error() string { return "whole-system tests need " + e.err.Error() }

func startHosts() (chan runner, func() error, error) {
	k, err := guest.CachedKernel()
	if err == nil {
		_, err = k.CachedImage(guest.GuestImage)
	}
	if err != nil {
		return nil, nil, &missingError{fmt.Errorf("a cached kernel and initramfs (make guest): %w", err)}
	}
	dir, err := os.MkdirTemp("", "godwit-tests-")
	if err != nil {
		return nil, nil, err
	}
	cleanup := []func() error{func() error { return os.RemoveAll(dir) }}
	end := func() error {
		var errs []error
		for _, f := range cleanup {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	}
	binary := filepath.Join(dir, "godwit")
	build := exec.Command("go", "build", "-o", dir, "../cmd/godwit", "../cmd/godwit-net")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, end, fmt.Errorf("build godwit: %w\n%s", err, out)
	}
	runners := make(chan runner, hosts)
	network, shared := lab.NewNetwork(), filepath.Join(dir, "shared.img")
	if err := makeSparse(shared, sharedSize); err != nil {
		return nil, end, err
	}
	hardware := doctor.CanBoot(doctor.Examine(doctor.Host{}))
	for i := range hosts {
		if hardware {
			runners <- &local{binary}
			continue
		}
		h, err := startLab(binary, k, lab.Options{Number: i + 1, Network: network, Disks: []string{shared}})
		if err != nil {
			return nil, end, err
		}
		cleanup = append(cleanup, h.Close)
		runners <- &emulated{h, i + 1}
	}
	return runners, end, nil
}

// sharedSize is the size in bytes of the disk that all emulated hosts have.
const sharedSize = 64 << 20

func makeSparse(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func startLab(binary string, k guest.Kernel, o lab.Options) (*lab.Host, error) {
	files, err := lab.GodwitFiles(binary, k)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	// Room for the largest guest, used only as far as it is touched.
	o.Kernel, o.CPUs, o.MemoryMiB, o.Files = k, 1, 8192, files
	h, err := lab.Start(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("emulated host: %w", err)
	}
	return h, nil
}

// local runs godwit on this machine.
type local struct{ binary string }

func (l *local) start(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, args ...string) (process, error) {
	c := exec.CommandContext(ctx, l.binary, args...)
	c.Stdin, c.Stdout, c.Stderr = stdin, stdout, stderr
	// A console's script ends with the guest, not with its input.
	c.WaitDelay = time.Second
	if err := c.Start(); err != nil {
		return nil, err
	}
	return &localProcess{ctx, c}, nil
}

type localProcess struct {
	ctx context.Context
	cmd *exec.Cmd
}

func (p *localProcess) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

func (p *localProcess) Wait() (int, error) {
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if p.ctx.Err() == nil && (errors.As(err, &exit) || errors.Is(err, exec.ErrWaitDelay)) {
		return p.cmd.ProcessState.ExitCode(), nil
	}
	return 0, err
}

// emulated runs godwit in an emulated host.
type emulated struct {
	host *lab.Host
	// number is the host's.
	number int
}

func (e *emulated) start(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, args ...string) (process, error) {
	p, err := e.host.Start(lab.Cmd{Args: append([]string{"godwit"}, args...), Stdin: stdin, Stdout: stdout, Stderr: stderr})
	if err != nil {
		return nil, err
	}
	started := &emulatedProcess{ctx: ctx, Process: p}
	started.stop = context.AfterFunc(ctx, started.end)
	return started, nil
}

type emulatedProcess struct {
	ctx context.Context
	*agent.Process
	stop func() bool
}

func (p *emulatedProcess) Wait() (int, error) {
	defer p.stop()
	exit, err := p.Process.Wait()
	if p.ctx.Err() != nil {
		return 0, p.ctx.Err()
	}
	return exit.Status(), err
}

func TestMain(m *testing.M) {
	status := m.Run()
	if shared.close != nil {
		if err := shared.close(); err != nil {
			fmt.Fprintln(os.Stderr, "end of the tests' host:", err)
			status = 1
		}
	}
	os.Exit(status)
}
