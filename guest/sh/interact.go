package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/term"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// editor reads lines from the terminal. The terminal is in raw mode only while
// a line is edited, so that commands find it as they expect it.
type editor struct {
	terminal  *term.Terminal
	interrupt bool // ^C was typed
}

const (
	// ctrlC is what the terminal in raw mode reads for ^C.
	ctrlC = 3
	// clearLine are the keys that end the line empty: go to its end, delete
	// to its start, enter.
	clearLine = "\x05\x15\r"
)

// errInterrupted is what readLine returns for ^C.
var errInterrupted = errors.New("interrupted")

func newEditor(complete func(line string, pos int, key rune) (string, int, bool)) *editor {
	e := &editor{}
	e.reset()
	e.terminal.AutoCompleteCallback = complete
	return e
}

// reset forgets what is typed but not read yet. The terminal package keeps a ^D
// for ever, so that after one there is nothing but the end of file.
func (e *editor) reset() {
	last := e.terminal
	e.terminal = term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{e, os.Stdout}, "")
	if last != nil {
		e.terminal.AutoCompleteCallback, e.terminal.History = last.AutoCompleteCallback, last.History
	}
}

// Read reads what is typed. The terminal package takes ^C for the end of file;
// here it ends the line with nothing in it.
func (e *editor) Read(p []byte) (int, error) {
	n, err := os.Stdin.Read(p)
	if i := bytes.IndexByte(p[:n], ctrlC); i >= 0 && len(p) >= i+len(clearLine) {
		e.interrupt = true
		return i + copy(p[i:], clearLine), nil
	}
	return n, err
}

func (e *editor) readLine(prompt string) (string, error) {
	fd := int(os.Stdin.Fd())
	cooked, err := term.MakeRaw(fd)
	if err != nil {
		return "", err
	}
	defer term.Restore(fd, cooked)
	// A serial console does not know its size unless it was told.
	if cols, rows, err := term.GetSize(fd); err == nil && cols > 0 && rows > 0 {
		if err := e.terminal.SetSize(cols, rows); err != nil {
			return "", err
		}
	}
	e.terminal.SetPrompt(prompt)
	e.interrupt = false
	line, err := e.terminal.ReadLine()
	if err == nil && e.interrupt {
		err = errInterrupted
	}
	return line, err
}

// interact reads commands from the terminal and runs them until the end of
// file or `exit`.
func interact() (int, error) {
	runner, err := newRunner(nil)
	if err != nil {
		return 2, err
	}
	// ^C at a running command ends that command only.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)

	e := newEditor(func(line string, pos int, key rune) (string, int, bool) {
		return complete(runner.Dir, line, pos, key)
	})
	status := 0
	for {
		program, err := e.readProgram(runner)
		switch {
		case errors.Is(err, errInterrupted):
			continue
		case errors.Is(err, io.EOF):
			fmt.Println()
			return status, nil
		case err != nil:
			fmt.Fprintf(os.Stderr, "sh: %v\n", err)
			var parse syntax.ParseError
			if !errors.As(err, &parse) {
				return 2, nil // the terminal is gone
			}
			continue
		}
		status, err = runInterruptibly(runner, program, interrupts)
		if err != nil {
			fmt.Fprintf(os.Stderr, "sh: %v\n", err)
		}
		if runner.Exited() {
			return status, nil
		}
	}
}

// readProgram reads lines until they are a complete program. The end of file
// within a program ends that only.
func (e *editor) readProgram(runner *interp.Runner) (*syntax.File, error) {
	var text strings.Builder
	var missing error // what the program so far lacks
	prompt := fmt.Sprintf("%s:%s# ", hostname(), runner.Dir)
	for {
		line, err := e.readLine(prompt)
		if errors.Is(err, io.EOF) && missing != nil {
			e.reset()
			fmt.Println()
			return nil, missing
		}
		if err != nil {
			return nil, err
		}
		text.WriteString(line + "\n")
		program, err := parse(strings.NewReader(text.String()), "sh")
		if !isIncomplete(err) {
			return program, err
		}
		missing, prompt = err, "> "
	}
}

// isIncomplete tells whether more lines can make a program of one that did not
// parse. The parser does not count a here-document as such whose delimiter is
// quoted.
func isIncomplete(err error) bool {
	var parse syntax.ParseError
	unclosed := errors.As(err, &parse) && strings.HasPrefix(parse.Text, "unclosed here-document")
	return unclosed || syntax.IsIncomplete(err)
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "guest"
	}
	return name
}

func runInterruptibly(runner *interp.Runner, program *syntax.File, interrupts <-chan os.Signal) (status int, err error) {
	// One from before, such as the end of the last command.
	select {
	case <-interrupts:
	default:
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-interrupts:
			cancel()
		case <-ctx.Done():
		}
	}()
	// Statement by statement: after a whole program the runner takes the
	// shell to have ended.
	for _, statement := range program.Stmts {
		status, err = runNode(ctx, runner, statement)
		switch {
		case ctx.Err() != nil:
			return 130, nil
		case err != nil || runner.Exited():
			return status, err
		}
	}
	return status, nil
}
