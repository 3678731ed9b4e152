package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/godwit-vmm/godwit/guest/agent"
)

// attach runs a command in a host with this process's standard streams, in a
// terminal of its own if they are one, and ends with the command's exit status.
func attach(client *agent.Client, args []string) error {
	cmd := agent.Command{Args: args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	in, out := int(os.Stdin.Fd()), int(os.Stdout.Fd())
	if term.IsTerminal(in) && term.IsTerminal(out) {
		size := windowSize(out)
		cmd.TTY = &size
		cmd.Env = append(cmd.Env, "TERM="+os.Getenv("TERM"))
		cooked, err := term.MakeRaw(in)
		if err != nil {
			return fmt.Errorf("terminal: %w", err)
		}
		defer term.Restore(in, cooked)
	}
	p, err := client.Start(cmd)
	if err != nil {
		return err
	}
	ctx, done := context.WithCancel(context.Background())
	defer done()
	go forward(ctx, client, p, out)
	exit, err := p.Wait()
	if err != nil {
		return err
	}
	if status := exit.Status(); status != 0 {
		return exitStatus(status)
	}
	return nil
}

// forward passes signals on to the command: a new window size, and the first
// request to end. The second one ends the connection, and with it the command,
// whether the host still answers or not.
func forward(ctx context.Context, client *agent.Client, p *agent.Process, terminal int) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGWINCH)
	defer signal.Stop(signals)
	asked := false
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			// An error means that the connection has ended, which
			// Wait says.
			switch {
			case s == syscall.SIGWINCH:
				p.Resize(windowSize(terminal))
			case asked:
				client.Close()
			default:
				asked = true
				p.Signal(s.(syscall.Signal))
			}
		}
	}
}

func windowSize(fd int) agent.Size {
	cols, rows, err := term.GetSize(fd)
	if err != nil || cols <= 0 || rows <= 0 {
		return agent.Size{Rows: 24, Cols: 80}
	}
	return agent.Size{Rows: uint16(rows), Cols: uint16(cols)}
}
