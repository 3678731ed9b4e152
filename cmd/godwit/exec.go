package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/godwit-vmm/godwit/guest/agent"
	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// execOptions are the flags of exec.
type execOptions struct {
	tty, noTTY bool
	env        []string
	dir        string
}

func newExec() *cobra.Command {
	var o execOptions
	c := &cobra.Command{
		Use:   "exec [flags] NAME [-- COMMAND...]",
		Short: "Run a command in a running guest",
		Long: `Run a command in a running guest, by its agent; a shell if none is given.

Input, output, signals and exit status are those of the command. In a terminal
the command gets one, too; there Enter ~ . breaks the connection off, which kills
the command. Exit status 126 and 127 are those of a shell for a command that
cannot be run, 125 is a failure of godwit's own.`,
		Example: `  godwit exec web -- uname -a
  godwit exec web                            a shell
  tar c . | godwit exec web -- tar x -C /srv
  godwit exec --env DEBUG=1 --workdir /srv web -- ./run`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.tty && o.noTTY {
				return errors.New("--tty and --no-tty exclude each other")
			}
			command := args[1:]
			if len(command) > 0 && command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 {
				command = []string{"sh"}
			}
			return execCommand(cmd.Context(), &o, args[0], command)
		},
	}
	f := c.Flags()
	// Flags behind NAME are the command's.
	f.SetInterspersed(false)
	f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal (default: if input and output are one)")
	f.BoolVarP(&o.noTTY, "no-tty", "T", false, "give the command no terminal")
	f.StringArrayVarP(&o.env, "env", "e", nil, "add `NAME=VALUE` to the command's environment; may be repeated")
	f.StringVarP(&o.dir, "workdir", "w", "", "working directory, a `DIR` of the guest")
	return c
}

func execCommand(ctx context.Context, o *execOptions, name string, args []string) error {
	client, err := connect(ctx, name)
	if err != nil {
		return err
	}
	defer client.Close()
	// Before the terminal is touched: no signal is to end this process then.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH)
	defer signal.Stop(signals)
	cmd := agent.Command{Args: args, Env: o.env, Dir: o.dir, Stdout: os.Stdout, Stderr: os.Stderr}
	if !background(os.Stdin) {
		cmd.Stdin = os.Stdin
	}
	if o.wantsTTY() {
		restore, err := useTerminal(&cmd, client)
		if err != nil {
			return err
		}
		defer restore()
	}
	p, err := client.Start(cmd)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	defer close(done)
	go forwardAll(signals, p, client, done)
	exit, err := p.Wait()
	if err != nil {
		return lost(name, "the command", err)
	}
	return status(exit)
}

// endInterval and endPatience are how often, and for how long, to look whether a
// guest runs whose connection is gone: its processes end one after the other.
const (
	endInterval = 20 * time.Millisecond
	endPatience = time.Second
)

// lost says what an error of the agent means for what was done in a guest.
func lost(name, what string, err error) error {
	var ending *agent.EndingError
	switch {
	case errors.As(err, &ending):
		return fmt.Errorf("guest %s %v, which ended %s", name, ending.How, what)
	case !errors.Is(err, agent.ErrClosed):
		return err
	case err == agent.ErrClosed: // by this end
		return fmt.Errorf("the connection to guest %s is gone, and with it %s", name, what)
	}
	for late := time.Now().Add(endPatience); time.Now().Before(late); time.Sleep(endInterval) {
		vm, openErr := rundir.Open(name)
		if errors.Is(openErr, rundir.ErrNotRunning) {
			return fmt.Errorf("guest %s has ended, and with it %s", name, what)
		}
		if openErr == nil {
			_ = vm.Close()
		}
	}
	return fmt.Errorf("the connection to guest %s is gone, and with it %s: %w", name, what, err)
}

// useTerminal gives the command a terminal, and this process's own to it if there
// is one.
func useTerminal(cmd *agent.Command, client *agent.Client) (restore func(), _ error) {
	t, err := openTerminal(os.Stdin)
	if err != nil {
		return nil, err
	}
	cmd.TTY = &agent.Size{Rows: 24, Cols: 80}
	if size := windowSize(); size != nil {
		cmd.TTY = size
	}
	cmd.Env = append([]string{"TERM=" + os.Getenv("TERM")}, cmd.Env...)
	if t == nil {
		return func() {}, nil
	}
	// What is typed goes through a pipe, so that the command's input ends
	// when the connection does.
	keys, typed := io.Pipe()
	go func() {
		var e tilde
		in := &filteredReader{in: os.Stdin, filter: e.filter, quit: func() { _ = client.Close() }}
		_, err := io.Copy(typed, in)
		_ = typed.CloseWithError(err)
	}()
	cmd.Stdin = keys
	return func() {
		_ = keys.Close()
		t.restore()
	}, nil
}

// wantsTTY tells whether the command is to get a terminal.
func (o *execOptions) wantsTTY() bool {
	both := term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd()))
	return o.tty || both && !o.noTTY
}

// patience is how many requests to end a command gets before the connection is
// broken off.
const patience = 3

// forwardAll passes signals on to the command until done is closed. The third
// request to end breaks the connection off, whether the guest still answers or
// not; so does the loss of the terminal.
func forwardAll(signals <-chan os.Signal, p *agent.Process, client *agent.Client, done <-chan struct{}) {
	for asked := 0; ; {
		select {
		case s := <-signals:
			switch s {
			case unix.SIGWINCH:
				if size := windowSize(); size != nil {
					go p.Resize(*size)
				}
				continue
			case unix.SIGHUP:
				asked = patience
			case unix.SIGINT, unix.SIGTERM, unix.SIGQUIT:
				asked++
			}
			// Not here: a guest that hangs takes nothing. An error means
			// that the connection has ended, which Wait says.
			go p.Signal(s.(unix.Signal))
			if asked >= patience {
				go client.Close()
			}
		case <-done:
			return
		}
	}
}
