package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// cost is what one run of a program took.
type cost struct {
	wall time.Duration // from before fork to after wait
	cpu  time.Duration // user and system, of the process and what it waited for
	out  string        // standard output
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
	stderr, err := os.Create(filepath.Join(dir, "stderr"))
	if err != nil {
		return cost{}, err
	}
	defer stderr.Close()

	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	began := time.Now()
	err = cmd.Run()
	c := cost{wall: time.Since(began)}
	if cmd.ProcessState == nil {
		return cost{}, err
	}
	c.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	out, readErr := os.ReadFile(stdout.Name())
	if readErr != nil {
		return cost{}, readErr
	}
	c.out = string(out)
	if ctx.Err() != nil {
		return cost{}, fmt.Errorf("%s: ended after %v: %w; last output: %q", argv[0], c.wall.Round(time.Millisecond), ctx.Err(), tail(c.out))
	}
	if code := cmd.ProcessState.ExitCode(); code != want {
		message, _ := os.ReadFile(stderr.Name())
		return cost{}, fmt.Errorf("%s: %v (want exit status %d): %s", filepath.Base(argv[0]), cmd.ProcessState, want, tail(string(message)))
	}
	return c, nil
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
