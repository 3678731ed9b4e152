package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/machine"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// errQuit ends a guest because the user typed the quit sequence.
var errQuit = errors.New("quit")

// errKilled ends a guest because of a second signal.
var errKilled = errors.New("killed")

// bootConsole boots a guest whose console is this terminal.
func bootConsole(ctx context.Context, run vmm.Options, c vmm.Config, o *bootOptions, r *registration) (err error) {
	d, err := newDetached(r, o.wait)
	if err != nil {
		return err
	}
	var out io.Writer = os.Stdout
	if d != nil {
		out = d
		defer func() {
			if err != nil {
				d.failed()
			}
		}()
	}
	h := newHost(&run, out)
	// A restored guest uses it if it had one.
	if o.console == consoleHVC || o.load != nil {
		run.HVC = newHVC(run.Console)
	}
	var t *terminal
	var signals *signalWatch
	// The machine is built before the terminal is touched, so that an error
	// about a file looks as it should.
	run.Built = func() error {
		i, err := r.wait()
		if err != nil {
			return err
		}
		h.serve(i)
		var up func() error
		if d != nil && o.wait {
			up = func() error {
				<-signals.begun
				return d.up()
			}
		}
		h.watch(up)
		if term.IsTerminal(int(os.Stdin.Fd())) {
			<-signals.begun // who changes the terminal gives it back
		}
		if t, err = openTerminal(os.Stdin); t != nil {
			fmt.Fprintf(os.Stderr, "godwit: console of %s; Ctrl-a x quits\r\n", i.name)
		}
		return err
	}
	h.vm = vmm.New(ctx, run, c)
	defer func() { err = errors.Join(err, h.close()) }()
	signals = watchSignals(h.vm, unix.SIGTERM, unix.SIGINT)
	defer signals.stop()
	if d != nil {
		d.watch(func() { h.vm.Kill(errAbandoned) })
	}
	if run.HVC != nil && windowSize() != nil {
		defer followWindow(h.vm)()
	}
	defer func() { t.restore() }()
	start := h.vm.Start
	if o.load != nil {
		start = func() error { return h.vm.Load(ctx, *o.load) }
	}
	if err := start(); err != nil {
		return err
	}
	<-signals.begun
	if d != nil && !o.wait {
		// Who is told of the guest may ask something of it at once.
		if h.listening != nil {
			<-h.listening
		}
		if err := d.up(); err != nil {
			h.vm.Kill(err)
		}
	}
	if !background(os.Stdin) {
		go typeKeys(h.vm, os.Stdin, t != nil)
	}
	outcome, err := h.vm.Wait()
	t.restore()
	if outcome == machine.Killed {
		return quitStatus(h.vm.Cause())
	}
	return ended(outcome, err)
}

// typeKeys gives the guest what is typed, until the input or the guest ends or the
// user quits. It stays behind in a read when the guest ends; the program is over then.
func typeKeys(vm *vmm.VM, in io.Reader, escapes bool) {
	readKeys(in, escapes, func(p []byte) error {
		_, err := vm.Input(context.Background(), p)
		return err
	}, func() { vm.Kill(errQuit) })
}

// readKeys passes on what is typed until the input ends, nobody takes it any more, or
// the user quits.
func readKeys(in io.Reader, escapes bool, take func([]byte) error, quit func()) {
	var e escape
	for {
		p := make([]byte, 512)
		n, err := in.Read(p)
		p = p[:n]
		if escapes {
			var leave bool
			if p, leave = e.filter(p); leave {
				quit()
				return
			}
		}
		if len(p) > 0 && take(p) != nil || err != nil {
			return
		}
	}
}

// quitStatus is what godwit ends with after the guest was killed.
func quitStatus(cause error) error {
	switch {
	case errors.Is(cause, errQuit):
		fmt.Fprintln(os.Stderr, "\ngodwit: the guest was switched off")
		return nil
	case errors.Is(cause, vmm.ErrMigrated):
		fmt.Fprintln(os.Stderr, "\ngodwit: the guest has moved to another host")
		return nil
	case errors.Is(cause, errKilled):
		return errors.New("killed by a signal before the guest had shut down")
	default:
		return cause
	}
}

// signalWatch is what watchSignals has begun.
type signalWatch struct {
	signals chan os.Signal
	// begun is closed when signals are watched, and end to end that.
	begun, end chan struct{}
}

// watchSignals presses the guest's power button at the first of the given signals, and
// kills the guest at the second, where there is no machine to press it on, or when the
// terminal is gone (SIGHUP). It begins in the background: a start need not wait for the
// threads that Go makes for it, which takes as long as making a VM. Until it has begun,
// a millisecond later, a signal ends the process: no more than the guest's folder can be
// there by then, which the next one of its name takes away.
func watchSignals(vm *vmm.VM, soft ...os.Signal) *signalWatch {
	w := &signalWatch{make(chan os.Signal, 4), make(chan struct{}), make(chan struct{})}
	go func() {
		signal.Notify(w.signals, append(soft, unix.SIGHUP)...)
		close(w.begun)
		pressed := false
		for {
			select {
			case s := <-w.signals:
				if s == unix.SIGHUP || pressed || vm.Machine() == nil {
					vm.Kill(errKilled)
					return
				}
				pressed = true
				fmt.Fprintf(os.Stderr, "godwit: %v: pressing the guest's power button; again to kill it\r\n", s)
				// A guest that ends at this moment needs no button.
				_ = vm.PowerButton()
			case <-w.end:
				return
			}
		}
	}()
	return w
}

// stop ends the watch.
func (w *signalWatch) stop() {
	<-w.begun
	signal.Stop(w.signals)
	close(w.end)
}

// terminalWords tell godwit's init what terminal the console is shown on. A
// serial line has no other way to say it.
func terminalWords() []string {
	fd := int(os.Stdout.Fd())
	if !term.IsTerminal(fd) {
		return nil
	}
	var words []string
	if name := os.Getenv("TERM"); name != "" && !strings.ContainsAny(name, " \t\n\"'") {
		words = append(words, "godwit.term="+name)
	}
	if cols, rows, err := term.GetSize(fd); err == nil && rows > 0 && cols > 0 {
		words = append(words, fmt.Sprintf("godwit.winsize=%dx%d", rows, cols))
	}
	return words
}
