package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/machine"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// errQuit ends a guest because the user typed the quit sequence.
var errQuit = errors.New("quit")

// errKilled ends a guest because of a second signal.
var errKilled = errors.New("killed")

// bootConsole boots a guest whose serial console is this terminal, again after
// each reboot.
func bootConsole(ctx context.Context, sys *kvm.System, c machine.Config, o *bootOptions, r *registration) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var current atomic.Pointer[machine.Machine]
	stopSignals := watchSignals(&current, cancel, unix.SIGTERM, unix.SIGINT)
	defer stopSignals()

	c.Console = os.Stdout
	d, err := newDetached(r)
	if err != nil {
		return err
	}
	var up func() error
	if d != nil {
		c.Console, up = d, d.up
		d.watch(func() { cancel(errAbandoned) })
		defer func() {
			if err != nil {
				d.failed()
			}
		}()
	}
	if o.console == consoleHVC {
		addHVC(&c)
		defer followWindow(&current)()
	}
	// The machine is built before the terminal is touched, so that an error
	// about a file looks as it should.
	m, err := machine.New(sys, c)
	if err != nil {
		return err
	}
	i, err := r.wait()
	if err != nil {
		return errors.Join(err, m.Close())
	}
	stopAPI := i.serveAPI(&current)
	defer func() { err = errors.Join(err, stopAPI()) }()
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel(nil)
	watching.Go(func() {
		if err := i.watch(ctx, up); err != nil {
			cancel(err)
		}
	})
	t, err := openTerminal(os.Stdin)
	if err != nil {
		return errors.Join(err, m.Close())
	}
	defer t.restore()
	if t != nil {
		fmt.Fprintf(os.Stderr, "godwit: console of %s; Ctrl-a x quits\r\n", i.name)
	}
	keys := make(chan []byte)
	if !background(os.Stdin) {
		go readKeys(os.Stdin, keys, t != nil, func() { cancel(errQuit) })
	}

	for {
		current.Store(m)
		outcome, err := runConsole(ctx, m, keys)
		current.Store(nil)
		err = errors.Join(err, m.Close())
		if outcome == machine.Killed {
			t.restore()
			return quitStatus(ctx)
		}
		again, err := o.ended(outcome, err)
		if err != nil || !again {
			t.restore()
			return err
		}
		if m, err = machine.New(sys, c); err != nil {
			t.restore()
			return err
		}
	}
}

// runConsole runs one machine and feeds it what is typed.
func runConsole(ctx context.Context, m *machine.Machine, keys <-chan []byte) (machine.Outcome, error) {
	send := m.Console().Send
	if m.HVC() != nil {
		send = m.HVC().Send
	}
	feeding, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case p := <-keys:
				if _, err := send(feeding, p); err != nil {
					return
				}
			case <-feeding.Done():
				return
			}
		}
	}()
	outcome, err := m.Run(ctx)
	stop()
	<-done
	return outcome, err
}

// readKeys passes on what is typed until the input ends or the user quits. It
// stays behind in a read when the guest ends; the program is over then.
func readKeys(in io.Reader, keys chan<- []byte, escapes bool, quit func()) {
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
		if len(p) > 0 {
			keys <- p
		}
		if err != nil {
			return
		}
	}
}

// quitStatus is what godwit ends with after the guest was killed.
func quitStatus(ctx context.Context) error {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errQuit):
		fmt.Fprintln(os.Stderr, "\ngodwit: the guest was switched off")
		return nil
	case errors.Is(cause, errKilled):
		return errors.New("killed by a signal before the guest had shut down")
	default:
		return cause
	}
}

// watchSignals presses the power button of the current machine at the first of
// the given signals, and kills it at the second, or when the terminal is gone
// (SIGHUP).
func watchSignals(current *atomic.Pointer[machine.Machine], kill context.CancelCauseFunc, soft ...os.Signal) (stop func()) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, append(soft, unix.SIGHUP)...)
	done := make(chan struct{})
	go func() {
		pressed := false
		for {
			select {
			case s := <-signals:
				m := current.Load()
				if s == unix.SIGHUP || pressed || m == nil {
					kill(errKilled)
					return
				}
				pressed = true
				fmt.Fprintf(os.Stderr, "godwit: %v: pressing the guest's power button; again to kill it\r\n", s)
				m.PowerButton()
			case <-done:
				return
			}
		}
	}()
	return func() { signal.Stop(signals); close(done) }
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
