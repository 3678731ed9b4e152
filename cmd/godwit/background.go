package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/godwit-vmm/godwit/internal/rundir"
	"golang.org/x/sys/unix"
)

// With --wait and --detach, boot starts itself once more, apart from the terminal, and
// ends when the guest is up, or runs. The two are connected by a pipe: the new process says
// there that it is ready, and sees there if the first one is gone before, with
// whom it then ends.

// readyVariable is the environment variable with the number of the descriptor of
// the pipe, for the process in the background.
const readyVariable = "GODWIT_READY_FD"

// readyWord begins the line that says that the guest is as far as the user wants; its
// name follows.
const readyWord = "ready "

// endTimeout is how long the process in the background may take to end, once it
// is to.
const endTimeout = 10 * time.Second

// bootInBackground starts this program again and returns when the guest is up, or
// runs. It prints the name of the guest.
func bootInBackground(ctx context.Context, o *bootOptions, stdout io.Writer) error {
	switch {
	case o.wait && o.detach:
		return errors.New("--detach and --wait exclude each other: --wait waits until the guest is up, --detach does not")
	case len(o.command) > 0:
		return errors.New("--wait and --detach leave the guest in the background: run the command with godwit exec")
	}
	return startInBackground(ctx, "the guest", o.waitTimeout, stdout)
}

// startInBackground starts this program again, as it was started, and returns when that is
// ready. It prints what it says then.
func startInBackground(ctx context.Context, what string, timeout time.Duration, stdout io.Writer) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	word, err := (&launch{what: what, args: os.Args[1:], stderr: os.Stderr, timeout: timeout}).run(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(stdout, word)
	return err
}

// launch is a start of this program in the background.
type launch struct {
	// what it is, for errors.
	what string
	args []string
	// stderr is its standard error until it is ready.
	stderr *os.File
	// timeout is how long it may take, 0 for ever.
	timeout time.Duration
}

// run returns when the program is ready, with the line that it says then. After an error
// nothing of it is left; it has said what went wrong if the error is an exitStatus.
func (l *launch) run(ctx context.Context) (word string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer ready.Close()
	c := exec.Command(self, l.args...)
	c.Stderr = l.stderr
	c.ExtraFiles = []*os.File{theirs}
	c.Env = append(os.Environ(), readyVariable+"=3")
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := errors.Join(c.Start(), theirs.Close()); err != nil {
		return "", fmt.Errorf("start in the background: %w", err)
	}
	if l.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.timeout)
		defer cancel()
	}
	// The end of the pipe here is the end of the process there.
	defer context.AfterFunc(ctx, func() { _ = ready.Close() })()
	// The process there keeps its end; only the line tells.
	line, _ := bufio.NewReader(ready).ReadString('\n')
	if word, ok := strings.CutPrefix(line, readyWord); ok {
		return word, c.Process.Release()
	}
	_ = ready.Close()
	killed := time.AfterFunc(endTimeout, func() { _ = c.Process.Kill() })
	defer killed.Stop()
	err = c.Wait()
	var exit *exec.ExitError
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "", fmt.Errorf("%s was not up within %v and was ended (--wait-timeout)", l.what, l.timeout)
	case ctx.Err() != nil:
		return "", fmt.Errorf("interrupted; %s was ended", l.what)
	case errors.As(err, &exit) && exit.Exited():
		return "", exitStatus(exit.ExitCode())
	case err != nil:
		return "", fmt.Errorf("the process in the background: %w", err)
	}
	return "", fmt.Errorf("%s ended before it was up", l.what)
}

// errAbandoned ends a guest whose starter does not wait for it any more.
var errAbandoned = errors.New("nobody waits for the guest any more")

// messagesFile has what a process in the background writes to standard error.
const messagesFile = "messages.log"

// starter is the process that has started this one in the background.
type starter struct {
	pipe *os.File
	told atomic.Bool // it knows that this one is ready
}

// newStarter returns nil in the foreground.
func newStarter() (*starter, error) {
	value, ok := os.LookupEnv(readyVariable)
	if !ok {
		return nil, nil
	}
	var fd int
	if _, err := fmt.Sscan(value, &fd); err != nil || fd <= 2 {
		return nil, fmt.Errorf("%s is %q: it is for godwit's own use", readyVariable, value)
	}
	if err := os.Unsetenv(readyVariable); err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd)
	return &starter{pipe: os.NewFile(uintptr(fd), "starter")}, nil
}

// detached is a boot in the background.
type detached struct {
	*starter
	i       *instance
	console *rundir.Log
	tail    *tail
}

// newDetached prepares a boot in the background, which the guest's agent ends if
// needsAgent. It returns nil in the foreground.
func newDetached(r *registration, needsAgent bool) (*detached, error) {
	s, err := newStarter()
	if s == nil || err != nil {
		return nil, err
	}
	i, err := r.wait()
	if err != nil {
		return nil, err
	}
	if needsAgent && i.bell == nil {
		return nil, errors.New("--wait needs the guest's agent, and thus the vsock device")
	}
	log, err := i.dir.OpenLog(rundir.ConsoleFile)
	if err != nil {
		return nil, err
	}
	return &detached{starter: s, i: i, console: log, tail: &tail{limit: 16 << 10}}, nil
}

// Write takes what the guest writes to its console.
func (d *detached) Write(p []byte) (int, error) {
	return io.MultiWriter(d.tail, d.console).Write(p)
}

// watch calls gone when the starter ends before it knows that this process is ready.
func (s *starter) watch(gone func()) {
	fd := int32(s.pipe.Fd())
	go func() {
		// Nobody reads a pipe: POLLERR, which need not be asked for.
		fds := []unix.PollFd{{Fd: fd}}
		for {
			if _, err := unix.Poll(fds, -1); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if !s.told.Load() {
			gone()
		}
	}()
}

// ready tells the starter, with a word for the user.
func (s *starter) ready(word string) error {
	s.told.Store(true)
	_, err := fmt.Fprintln(s.pipe, readyWord+word)
	return err
}

// up tells the starter that the guest is as far as it wants. From then on this process has nothing
// to do with where it was started: its messages go to a file beside the console.
func (d *detached) up() error {
	if err := messagesTo(d.i.dir.Path(messagesFile)); err != nil {
		return err
	}
	return d.ready(d.i.dir.Name())
}

// messagesTo has standard error go to a file.
func messagesTo(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Dup3(int(f.Fd()), 2, 0); err != nil {
		return fmt.Errorf("standard error: %w", err)
	}
	return nil
}

// failed shows the end of the console to the starter, unless that was content.
func (d *detached) failed() {
	if !d.told.Load() {
		d.tail.dump(os.Stderr)
	}
}
