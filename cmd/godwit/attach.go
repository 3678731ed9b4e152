package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"

	"github.com/godwit-vmm/godwit/internal/api/client"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newAttach() *cobra.Command {
	return &cobra.Command{
		Use:   "console NAME",
		Short: "Attach to the console of a running guest",
		Long: `Show the console of a running guest, at first the last MiB of what it has written
since it was started, and type there. In a terminal Ctrl-a d detaches (so does
Ctrl-a x), and the guest goes on; Ctrl-a Ctrl-a is Ctrl-a for the guest. Several may
be attached at once.

Without a terminal, input goes to the guest and its output comes out here until the
guest ends.`,
		Example: `  godwit console web
  echo reboot | godwit console web
  godwit console web </dev/null >console.log`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
			defer stop()
			return openConsole(ctx, args[0], os.Stdin, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
}

// openConsole attaches in and out to the console of a guest until the guest ends,
// the user detaches, or ctx ends.
func openConsole(ctx context.Context, name string, in *os.File, out, messages io.Writer) error {
	var console *client.Console
	err := askGuest(ctx, name, func(ctx context.Context, c *client.Client) (err error) {
		console, err = c.Console(ctx)
		return err
	})
	if err != nil {
		return err
	}
	defer console.Close()
	t, err := openTerminal(in)
	if err != nil {
		return err
	}
	defer t.restore()
	if t != nil {
		fmt.Fprintf(messages, "godwit: console of %s; Ctrl-a d detaches\r\n", name)
	}
	detached, err := attach(ctx, console, in, out, t != nil)
	t.restore()
	switch {
	case err != nil:
		return fmt.Errorf("console of guest %s: %w", name, err)
	case t != nil && detached:
		fmt.Fprintf(messages, "\ngodwit: detached from %s, which goes on\n", name)
	case t != nil:
		fmt.Fprintf(messages, "\ngodwit: guest %s has ended\n", name)
	}
	return nil
}

// attach passes bytes both ways. It leaves a goroutine behind that reads in; the
// program is over then. escapes says whether what is typed can detach.
func attach(ctx context.Context, console io.ReadWriteCloser, in *os.File, out io.Writer, escapes bool) (detached bool, _ error) {
	var left atomic.Bool
	leave := func() {
		left.Store(true)
		_ = console.Close()
	}
	defer context.AfterFunc(ctx, leave)()
	if !background(in) {
		go typeAttached(console, in, escapes, leave)
	}
	_, err := io.Copy(out, console)
	if left.Load() {
		return true, nil
	}
	if errors.Is(err, unix.EPIPE) {
		return true, nil // nobody reads out any more
	}
	return false, err
}

// typeAttached gives the guest what is typed until that ends or the user detaches.
func typeAttached(console io.Writer, in io.Reader, escapes bool, detach func()) {
	var e escape
	p := make([]byte, 512)
	for {
		n, err := in.Read(p)
		keys, leave := p[:n], false
		if escapes {
			keys, leave = detachKeys(&e, p[:n])
		}
		// A guest that is gone ends the other direction.
		_, writeErr := console.Write(keys)
		if leave {
			detach()
		}
		if leave || err != nil || writeErr != nil {
			return
		}
	}
}

// detachKeys is filter of e, with Ctrl-a d as well as Ctrl-a x.
func detachKeys(e *escape, in []byte) (out []byte, detach bool) {
	for i, b := range in {
		if e.pending && (b == 'd' || b == 'D') {
			return out, true
		}
		keys, quit := e.filter(in[i : i+1])
		out = append(out, keys...)
		if quit {
			return out, true
		}
	}
	return out, false
}
