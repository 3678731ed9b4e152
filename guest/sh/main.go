// Sh is the shell of godwit's guests: the interpreter of mvdan.cc/sh with line
// editing, history and completion where it talks to a terminal.
//
//	sh                    commands from standard input, or interactive
//	sh -c COMMAND [ARG...]
//	sh FILE [ARG...]
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

func main() {
	status, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "sh: %v\n", err)
	}
	os.Exit(status)
}

// run does what the arguments ask for and gives the exit status. An error is
// one of the shell itself.
func run(args []string) (int, error) {
	switch {
	case len(args) >= 1 && args[0] == "-c":
		if len(args) == 1 {
			return 2, errors.New("-c needs a command")
		}
		// The first argument behind the command is $0.
		return interpret(strings.NewReader(args[1]), "sh", args[min(3, len(args)):])
	case len(args) >= 1 && !strings.HasPrefix(args[0], "-"):
		f, err := os.Open(args[0])
		if err != nil {
			return 127, err
		}
		defer f.Close()
		return interpret(f, args[0], args[1:])
	case term.IsTerminal(int(os.Stdin.Fd())):
		return interact()
	}
	return interpret(os.Stdin, "sh", nil)
}

// interpret runs a whole script.
func interpret(script io.Reader, name string, args []string) (int, error) {
	runner, err := newRunner(args)
	if err != nil {
		return 2, err
	}
	program, err := parse(script, name)
	if err != nil {
		return 2, err
	}
	return runNode(context.Background(), runner, program)
}

// parse reads a program.
func parse(script io.Reader, name string) (*syntax.File, error) {
	program, err := syntax.NewParser().Parse(script, name)
	if err != nil {
		return nil, err
	}
	// The interpreter panics at a here-document without lines, for which the
	// parser leaves no word.
	syntax.Walk(program, func(n syntax.Node) bool {
		r, ok := n.(*syntax.Redirect)
		if ok && (r.Op == syntax.Hdoc || r.Op == syntax.DashHdoc) && r.Hdoc == nil {
			r.Hdoc = &syntax.Word{Parts: []syntax.WordPart{&syntax.Lit{}}}
		}
		return true
	})
	return program, nil
}

// runNode runs a part of a program and gives its exit status. What the
// interpreter cannot do it says by a panic, which ends that part only.
func runNode(ctx context.Context, runner *interp.Runner, n syntax.Node) (status int, err error) {
	defer func() {
		if p := recover(); p != nil {
			status, err = 2, fmt.Errorf("the interpreter cannot do this: %v", p)
		}
	}()
	return statusOf(runner.Run(ctx, n))
}

func newRunner(args []string) (*interp.Runner, error) {
	return interp.New(
		interp.StdIO(os.Stdin, os.Stdout, os.Stderr),
		interp.Params(append([]string{"--"}, args...)...),
	)
}

// statusOf tells the exit status of a program from an error of the shell.
func statusOf(err error) (int, error) {
	if err == nil {
		return 0, nil
	}
	if status, ok := interp.IsExitStatus(err); ok {
		return int(status), nil
	}
	return 1, err
}
