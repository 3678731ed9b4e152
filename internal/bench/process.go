package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// cost is what one run of a program took.
type cost struct {
	wall  time.Duration // from before fork to after wait
	first time.Duration // from before fork to the first output, for runUntilOutput
	cpu   time.Duration // user and system, of the process and what it waited for
	out   string        // standard output
}

// processLimit bounds the run of a program that hangs.
const processLimit = 2 * time.Minute

// runProcess runs a program to its end in the folder dir. It fails when the
// exit status is not want. Standard output and error go to files, so that no
// copying disturbs the measurement.
func runProcess(ctx context.Context, dir string, want int, argv ...string) (cost, error) {
	ctx, cancel := context.WithTimeout(ctx, processLimit)
	defer cancel()
	stdout, err := os.Create(filepath.Join(dir, "stdout"))
	if err != nil {
		return cost{}, err
	}
	defer stdout.Close()
	var c cost
	err = c.run(ctx, dir, want, stdout, nil, argv)
	if err != nil {
		return cost{}, err
	}
	out, err := os.ReadFile(stdout.Name())
	c.out = string(out)
	return c, err
}

// killed is the exit status of a program that goes on for ever: runUntilOutput kills it.
const killed = -1

// runUntilOutput is runProcess for a program whose first output counts.
func runUntilOutput(ctx context.Context, dir string, want int, argv ...string) (cost, error) {
	ctx, cancel := context.WithTimeout(ctx, processLimit)
	defer cancel()
	said, stdout, err := os.Pipe()
	if err != nil {
		return cost{}, err
	}
	defer said.Close()
	defer stdout.Close()
	var c cost
	err = c.run(ctx, dir, want, stdout, func(began time.Time, program *os.Process) error {
		if err := stdout.Close(); err != nil { // the program has its own
			return err
		}
		var first [1]byte
		if _, err := io.ReadFull(said, first[:]); err != nil {
			return fmt.Errorf("the first output: %w", err)
		}
		c.first = time.Since(began)
		if want == killed {
			return program.Kill()
		}
		rest, err := io.ReadAll(said)
		c.out = string(first[:]) + string(rest)
		return err
	}, argv)
	return c, err
}

// run is a run of a program to its end. During is called, if it is set, when it has been
// started, with the time before that.
func (c *cost) run(ctx context.Context, dir string, want int, stdout *os.File, during func(time.Time, *os.Process) error, argv []string) error {
	stderr, err := os.Create(filepath.Join(dir, "stderr"))
	if err != nil {
		return err
	}
	defer stderr.Close()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	var duringErr error
	if during != nil {
		duringErr = during(began, cmd.Process)
	}
	err = cmd.Wait()
	c.wall = time.Since(began)
	if cmd.ProcessState == nil {
		return err
	}
	c.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	message, _ := os.ReadFile(stderr.Name())
	if ctx.Err() != nil {
		return fmt.Errorf("%s: ended after %v: %w: %s", argv[0], c.wall.Round(time.Millisecond), ctx.Err(), tail(string(message)))
	}
	if code := cmd.ProcessState.ExitCode(); code != want {
		return fmt.Errorf("%s: %v (want exit status %d): %s", filepath.Base(argv[0]), cmd.ProcessState, want, tail(string(message)))
	}
	return duringErr
}

// tail is the end of a program's output, short enough for an error message.
func tail(s string) string {
	const limit = 300
	s = strings.TrimSpace(s)
	if len(s) > limit {
		s = "..." + s[len(s)-limit:]
	}
	return strings.ReplaceAll(s, "\n", "; ")
}

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
