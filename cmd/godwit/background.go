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
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	c := exec.Command(self, os.Args[1:]...)
	c.Stderr = os.Stderr // until it is ready
	c.ExtraFiles = []*os.File{theirs}
	c.Env = append(os.Environ(), readyVariable+"=3")
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := errors.Join(c.Start(), theirs.Close()); err != nil {
		return errors.Join(fmt.Errorf("start in the background: %w", err), ready.Close())
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if o.waitTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.waitTimeout)
		defer cancel()
	}
	// The end of the pipe here is the end of the process there.
	context.AfterFunc(ctx, func() { _ = ready.Close() })
	// The process there keeps its end; only the line tells.
	line, _ := bufio.NewReader(ready).ReadString('\n')
	if name, ok := strings.CutPrefix(line, readyWord); ok {
		fmt.Fprint(stdout, name)
		return c.Process.Release()
	}
	_ = ready.Close()
	killed := time.AfterFunc(endTimeout, func() { _ = c.Process.Kill() })
	defer killed.Stop()
	err = c.Wait()
	var exit *exec.ExitError
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("the guest was not up within %v and was ended (--wait-timeout)", o.waitTimeout)
	case ctx.Err() != nil:
		return errors.New("interrupted; the guest was ended")
	case errors.As(err, &exit) && exit.Exited():
		return exitStatus(exit.ExitCode()) // it has said why
	case err != nil:
		return fmt.Errorf("the process in the background: %w", err)
	}
	return errors.New("the guest ended before it was up")
}

// errAbandoned ends a guest whose starter does not wait for it any more.
var errAbandoned = errors.New("nobody waits for the guest any more")

// messagesFile has what a process in the background writes to standard error.
const messagesFile = "messages.log"

// detached is a boot in the background.
type detached struct {
	i       *instance
	pipe    *os.File
	told    atomic.Bool // the starter knows the guest's name
	console *rundir.Log
	tail    *tail
}

// newDetached prepares a boot in the background, which the guest's agent ends if
// needsAgent. It returns nil in the foreground.
func newDetached(r *registration, needsAgent bool) (*detached, error) {
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
	return &detached{i: i, pipe: os.NewFile(uintptr(fd), "starter"), console: log, tail: &tail{limit: 16 << 10}}, nil
}

// Write takes what the guest writes to its console.
func (d *detached) Write(p []byte) (int, error) {
	return io.MultiWriter(d.tail, d.console).Write(p)
}

// watch calls gone when the starter ends before it knows the guest's name.
func (d *detached) watch(gone func()) {
	fd := int32(d.pipe.Fd())
	go func() {
		// Nobody reads a pipe: POLLERR, which need not be asked for.
		fds := []unix.PollFd{{Fd: fd}}
		for {
			if _, err := unix.Poll(fds, -1); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if !d.told.Load() {
			gone()
		}
	}()
}

// up tells the starter that the guest is as far as it wants. From then on this process has nothing
// to do with where it was started: its messages go to a file beside the console.
func (d *detached) up() error {
	f, err := os.OpenFile(d.i.dir.Path(messagesFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Dup3(int(f.Fd()), 2, 0); err != nil {
		return fmt.Errorf("standard error: %w", err)
	}
	d.told.Store(true)
	_, err = fmt.Fprintln(d.pipe, readyWord+d.i.dir.Name())
	return err
}

// failed shows the end of the console to the starter, unless that was content.
func (d *detached) failed() {
	if !d.told.Load() {
		d.tail.dump(os.Stderr)
	}
}
