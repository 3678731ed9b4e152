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
	program, err := syntax.NewParser().Parse(script, name)
	if err != nil {
		return 2, err
	}
	return statusOf(runner.Run(context.Background(), program))
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
