package bench

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestRunProcess(t *testing.T) {
	dir := t.TempDir()
	c, err := runProcess(t.Context(), dir, 3, "/bin/sh", "-c", "echo out; echo err >&2; exit 3")
	if err != nil || c.out != "out\n" || c.wall <= 0 || c.wall > time.Minute {
		t.Errorf("got %+v, %v", c, err)
	}
	_, err = runProcess(t.Context(), dir, 0, "/bin/sh", "-c", "echo first >&2; echo second >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "first; second") {
		t.Errorf("error %v, want exit status and message", err)
	}
	if _, err := runProcess(t.Context(), dir, 0, "/no/such/program"); err == nil {
		t.Error("a program that does not exist ran")
	}
}

func TestRunUntilOutput(t *testing.T) {
	dir := t.TempDir()
	c, err := runUntilOutput(t.Context(), dir, 3, "/bin/sh", "-c", "echo out; sleep 0.2; echo more; exit 3")
	if err != nil || c.out != "out\nmore\n" || c.first <= 0 || c.first+100*time.Millisecond > c.wall {
		t.Errorf("got %+v, %v", c, err)
	}
	c, err = runUntilOutput(t.Context(), dir, killed, "/bin/sh", "-c", "echo out; exec sleep 600")
	if err != nil || c.first <= 0 {
		t.Errorf("got %+v, %v", c, err)
	}
	for _, script := range []string{"exit 0", "echo out; exit 1"} {
		if _, err := runUntilOutput(t.Context(), dir, 0, "/bin/sh", "-c", script); err == nil {
			t.Errorf("%s: no error", script)
		}
	}
}

func TestRunProcessCountsProcessorTime(t *testing.T) {
	c, err := runProcess(t.Context(), t.TempDir(), 0, "/bin/sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
	if err != nil || c.cpu <= 0 || c.cpu > c.wall+time.Second {
		t.Errorf("processor time %v of %v, %v", c.cpu, c.wall, err)
	}
}

func TestRunProcessKillsOnCancel(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := runProcess(ctx, t.TempDir(), 0, "/bin/sleep", "600"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want that of the context", err)
	}
}

func TestTail(t *testing.T) {
	if got := tail(" a\nb\n"); got != "a; b" {
		t.Errorf("got %q", got)
	}
	if got := tail(strings.Repeat("x", 1000)); len(got) != 303 || !strings.HasPrefix(got, "...x") {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}
