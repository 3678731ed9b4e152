package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/guest/agent"
	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/machine"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// shutdownTimeout bounds how long a guest may take to power off after its
// command has ended.
const shutdownTimeout = 30 * time.Second

// lossPatience is how long a guest may live without the connection to its agent.
const lossPatience = 10 * time.Second

// bootCommand boots a guest, runs one command in it by its agent, and powers it
// off.
func bootCommand(ctx context.Context, run vmm.Options, c vmm.Config, o *bootOptions, r *registration) (err error) {
	fromGuest, toHost := io.Pipe()
	console := &tail{limit: 16 << 10}
	run.Channel, run.NoReboot = toHost, true
	var out io.Writer = console
	if o.verbose {
		out = os.Stderr
	}
	h := newHost(&run, out)
	var i *instance
	run.Built = func() (err error) {
		if i, err = r.wait(); err == nil {
			h.serve(i)
		}
		return err
	}
	vm := vmm.New(ctx, run, c)
	h.vm = vm
	defer func() { err = errors.Join(err, h.close()) }()
	signals := watchSignals(vm, unix.SIGTERM)
	defer signals.stop()
	if err := vm.Start(); err != nil {
		return err
	}
	<-signals.begun

	// The command's context ends with the machine, whatever ends that.
	running, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		<-vm.Done()
		stop()
		// Only now, for the serial port was still being flushed into it.
		toHost.Close()
	}()
	exit, commandErr := runCommand(running, vm, &line{fromGuest, vm, running}, o, i)
	if errors.Is(commandErr, agent.ErrClosed) {
		// A guest that ends takes the connection away before itself; how
		// it ends says more than that.
		select {
		case <-running.Done():
		case <-time.After(lossPatience):
		}
	}
	if commandErr != nil {
		vm.Kill(commandErr)
	} else {
		late := time.AfterFunc(shutdownTimeout, func() {
			vm.Kill(fmt.Errorf("the guest did not power off within %v of its command's end", shutdownTimeout))
		})
		defer late.Stop()
	}
	fromGuest.CloseWithError(io.ErrClosedPipe)
	outcome, machineErr := vm.Wait()

	if commandErr == nil && machineErr == nil && outcome != machine.Panicked {
		return status(exit)
	}
	if outcome == machine.Killed {
		return quitStatus(vm.Cause())
	}
	console.dump(os.Stderr)
	if err := ended(outcome, machineErr); err != nil {
		return err
	}
	return fmt.Errorf("the guest %v before its command ended", outcome)
}

// firstClient connects to the guest's agent by vsock or on the second serial port,
// whichever it serves: that depends on the guest's kernel. stop ends the
// connection.
func firstClient(ctx context.Context, i *instance, serial io.ReadWriteCloser) (_ *agent.Client, stop func(), _ error) {
	type answer struct {
		client *agent.Client
		stop   func()
		err    error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer, 2)
	lines := 1
	go func() {
		client, err := agent.Dial(ctx, serial)
		answers <- answer{client, func() { _ = client.Close() }, err}
	}()
	if i.bell != nil {
		lines++
		go func() {
			client, bell, err := i.awaitUp(ctx)
			answers <- answer{client, func() { _ = errors.Join(client.Close(), bell.Close()) }, err}
		}()
	}
	var first *answer
	var errs []error
	for range lines {
		a := <-answers
		switch {
		case a.err != nil:
			errs = append(errs, a.err)
		case first == nil:
			first = &a
			cancel()
		default:
			a.stop()
		}
	}
	if first == nil {
		return nil, nil, errors.Join(errs...)
	}
	return first.client, first.stop, nil
}

// runCommand runs the command of o by the agent, and asks the guest to power off
// after it.
func runCommand(ctx context.Context, vm *vmm.VM, serial io.ReadWriteCloser, o *bootOptions, i *instance) (agent.Exit, error) {
	client, stopClient, err := firstClient(ctx, i, serial)
	if err != nil {
		return agent.Exit{}, err
	}
	defer stopClient()
	// A guest that is gone does not close its connections.
	defer context.AfterFunc(ctx, func() { _ = client.Close() })()
	cmd := agent.Command{Args: o.command, Stdout: os.Stdout, Stderr: os.Stderr}
	if !background(os.Stdin) {
		cmd.Stdin = os.Stdin
	}
	var t *terminal
	if term.IsTerminal(int(os.Stdout.Fd())) {
		if t, err = openTerminal(os.Stdin); err != nil {
			return agent.Exit{}, err
		}
	}
	if t != nil {
		defer t.restore()
		keys, typed := io.Pipe()
		go func() {
			var e escape
			_, err := io.Copy(typed, &filteredReader{in: os.Stdin, filter: e.filter, quit: func() { vm.Kill(errQuit) }})
			typed.CloseWithError(err)
		}()
		defer keys.Close()
		cmd.Stdin, cmd.TTY = keys, windowSize()
		cmd.Env = append(cmd.Env, "TERM="+os.Getenv("TERM"))
	}
	p, err := client.Start(cmd)
	if err != nil {
		return agent.Exit{}, err
	}
	stop := forward(p, vm)
	defer stop()
	exit, err := p.Wait()
	if err != nil {
		return exit, err
	}
	return exit, client.Poweroff()
}

// forward passes Ctrl-C and changes of the window on to the command. A second
// Ctrl-C kills the guest.
func forward(p *agent.Process, vm *vmm.VM) (stop func()) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGWINCH)
	done := make(chan struct{})
	go func() {
		interrupted := false
		for {
			select {
			case s := <-signals:
				switch {
				case s == unix.SIGWINCH:
					if size := windowSize(); size != nil {
						_ = p.Resize(*size)
					}
				case interrupted:
					vm.Kill(errKilled)
				default:
					interrupted = true
					_ = p.Signal(unix.SIGINT)
				}
			case <-done:
				return
			}
		}
	}()
	return func() { signal.Stop(signals); close(done) }
}

func windowSize() *agent.Size {
	cols, rows, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil || cols <= 0 || rows <= 0 || cols > 0xffff || rows > 0xffff {
		return nil
	}
	return &agent.Size{Rows: uint16(rows), Cols: uint16(cols)}
}

// status is what godwit ends with after a command: the command's own exit
// status, or 128 and the signal that killed it, as shells have it.
func status(e agent.Exit) error {
	if code := e.Status(); code != 0 {
		return exitStatus(code)
	}
	return nil
}

// line is the guest's second serial port as the agent's transport.
type line struct {
	*io.PipeReader
	vm  *vmm.VM
	ctx context.Context
}

// Write sends to the guest and returns when it has taken all of p.
func (l *line) Write(p []byte) (int, error) { return l.vm.SendChannel(l.ctx, p) }

// tail keeps the last bytes that were written to it.
type tail struct {
	mu    sync.Mutex
	limit int
	buf   []byte
}

// Write keeps p and forgets what is older than the limit. It never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*t.limit {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.limit:]...)
	}
	return len(p), nil
}

// dump writes what was kept, as the guest's last words.
func (t *tail) dump(w io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.buf) > 0 {
		fmt.Fprintf(w, "godwit: the end of the guest's console:\n%s\n", t.buf[max(0, len(t.buf)-t.limit):])
	}
}

// filteredReader reads what is typed, less the sequence that quits.
type filteredReader struct {
	in io.Reader
	// filter gives what of the typed bytes is for the guest, at most one
	// more, and whether the user wants to quit.
	filter func(in []byte) (out []byte, quit bool)
	quit   func()
}

// Read returns what is typed for the guest, and io.EOF once the user quits.
func (r *filteredReader) Read(p []byte) (int, error) {
	raw := make([]byte, max(1, len(p)/2))
	for {
		n, err := r.in.Read(raw)
		out, quit := r.filter(raw[:n])
		if quit {
			r.quit()
			return 0, io.EOF
		}
		if len(out) > 0 || err != nil {
			return copy(p, out), err
		}
	}
}
