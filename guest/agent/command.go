package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
)

// Command is what to run in the guest.
type Command struct {
	// Args are the command and its arguments. A command without a slash
	// is looked for in the guest's PATH.
	Args []string
	// Env is added to the environment that the agent has.
	Env []string
	// Dir is the working directory; the agent's own if empty.
	Dir string
	// TTY gives the command a terminal of this size. Standard error then
	// comes out of Stdout.
	TTY *Size
	// Stdin, Stdout and Stderr are the command's standard streams. Without
	// a Stdin the command reads end of file; without a Stdout or Stderr
	// what it writes is dropped.
	//
	// A Stdin whose Read does not return keeps one goroutine until it does,
	// even when the command has ended.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Process is a command that runs in the guest. Its methods may be called from
// any goroutine.
type Process struct {
	client  *Client
	session *session
	outputs sync.WaitGroup

	mu  sync.Mutex
	err error // of a Stdin, Stdout or Stderr
}

// Run runs a command and waits for it. The command is killed when the context
// ends. A command that fails is no error, but an Exit that says so.
func (c *Client) Run(ctx context.Context, cmd Command) (Exit, error) {
	p, err := c.Start(cmd)
	if err != nil {
		return Exit{}, err
	}
	stop := context.AfterFunc(ctx, func() { c.abandon(p.session) })
	defer stop()
	exit, err := p.Wait()
	if ctx.Err() != nil {
		return exit, ctx.Err()
	}
	return exit, err
}

// Start starts a command.
func (c *Client) Start(cmd Command) (*Process, error) {
	if len(cmd.Args) == 0 {
		return nil, errors.New("no command to run")
	}
	s, err := c.open(request{Op: opExec, Args: cmd.Args, Env: cmd.Env, Dir: cmd.Dir, TTY: cmd.TTY}, stdout, stderr)
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", cmd.Args[0], err)
	}
	p := &Process{client: c, session: s}
	p.output(stdout, cmd.Stdout)
	p.output(stderr, cmd.Stderr)
	go p.input(cmd.Stdin)
	return p, nil
}

// output copies a stream of the command to w.
func (p *Process) output(s stream, w io.Writer) {
	if w == nil {
		w = io.Discard
	}
	p.outputs.Go(func() {
		if _, err := io.CopyBuffer(onlyWriter{w}, onlyReader{p.session.in[s]}, make([]byte, maxData)); err != nil {
			// Nobody reads the command's output any more, so that
			// it would hang when the window is full.
			p.session.in[s].discard()
			p.failed(err)
		}
	})
}

func (p *Process) input(r io.Reader) {
	if r != nil {
		if err := copyToStream(p.session.channel, stdin, r); err != nil {
			p.failed(err)
			return
		}
	}
	// An error means that the connection has ended, which Wait says.
	p.session.finish(stdin)
}

// failed kills the command because one of its streams broke.
func (p *Process) failed(err error) {
	p.mu.Lock()
	if p.err == nil {
		p.err = err
	}
	p.mu.Unlock()
	p.client.abandon(p.session)
}

// Signal sends a signal to the command and the processes it started.
func (p *Process) Signal(sig syscall.Signal) error {
	return p.send(kindSignal, []byte{byte(sig)})
}

// Resize tells the command's terminal its new size.
func (p *Process) Resize(s Size) error {
	payload := binary.LittleEndian.AppendUint16(nil, s.Rows)
	return p.send(kindResize, binary.LittleEndian.AppendUint16(payload, s.Cols))
}

// Kill kills the command and the processes it started.
func (p *Process) Kill() error { return p.send(kindAbandon, nil) }

func (p *Process) send(k kind, payload []byte) error {
	select {
	case <-p.session.done:
		return nil
	default:
		return p.client.conn.send(frame{kind: k, session: p.session.id, payload: payload})
	}
}

// Wait waits until the command has ended and its output has been written.
func (p *Process) Wait() (Exit, error) {
	<-p.session.done
	p.outputs.Wait()
	if err := p.session.failure(); err != nil {
		return p.session.result.Exit, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.session.result.Exit, p.err
}

// failure is why a session failed, after it is done.
func (s *session) failure() error {
	if s.err != nil {
		return s.err
	}
	if s.result.Error != "" {
		return errors.New(printable(s.result.Error))
	}
	if s.result.Ending != 0 {
		return &EndingError{s.result.Ending}
	}
	return nil
}

// printable is a text of the guest that a terminal does not obey.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// Put writes a file in the guest, as a whole: a reader of the path sees the
// old file or the new one.
func (c *Client) Put(ctx context.Context, path string, mode fs.FileMode, r io.Reader) error {
	s, err := c.open(request{Op: opPut, Path: path, Mode: mode.Perm()})
	if err != nil {
		return fmt.Errorf("put %s: %w", path, err)
	}
	stop := context.AfterFunc(ctx, func() { c.abandon(s) })
	defer stop()
	copied := copyToStream(s.channel, stdin, r)
	if copied == nil {
		copied = s.finish(stdin)
	} else {
		c.abandon(s)
	}
	<-s.done
	switch failure := s.failure(); {
	case ctx.Err() != nil:
		return fmt.Errorf("put %s: %w", path, ctx.Err())
	case copied != nil:
		return fmt.Errorf("put %s: %w", path, copied)
	case failure != nil:
		return fmt.Errorf("put %s: %w", path, failure)
	}
	return nil
}

// Get reads a file of the guest and gives its permissions.
func (c *Client) Get(ctx context.Context, path string, w io.Writer) (fs.FileMode, error) {
	s, err := c.open(request{Op: opGet, Path: path}, stdout, stderr)
	if err != nil {
		return 0, fmt.Errorf("get %s: %w", path, err)
	}
	stop := context.AfterFunc(ctx, func() { c.abandon(s) })
	defer stop()
	_, err = io.CopyBuffer(onlyWriter{w}, onlyReader{s.in[stdout]}, make([]byte, maxData))
	if err != nil {
		s.in[stdout].discard()
		c.abandon(s)
	}
	<-s.done
	if ctx.Err() != nil {
		err = ctx.Err()
	} else if err == nil {
		err = s.failure()
	}
	if err != nil {
		return 0, fmt.Errorf("get %s: %w", path, err)
	}
	return s.result.Mode, nil
}

// abandon ends a session and waits for its end. A server that does not answer
// has hung, and takes its connection along.
func (c *Client) abandon(s *session) {
	hung := time.AfterFunc(c.patience, func() { c.Close() })
	defer hung.Stop()
	select {
	case <-s.done:
		return
	default:
	}
	// An error means that the connection has ended, and the session with it.
	c.conn.send(frame{kind: kindAbandon, session: s.id})
	<-s.done
}

// copyToStream sends what r gives. A peer that does not want more is no error.
func copyToStream(ch *channel, s stream, r io.Reader) error {
	buf := make([]byte, maxData)
	for {
		n, err := r.Read(buf)
		if werr := ch.write(s, buf[:n]); errors.Is(werr, io.ErrClosedPipe) {
			return nil
		} else if werr != nil {
			return werr
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// onlyReader and onlyWriter keep io.Copy from shortcuts that bypass its
// buffer.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
