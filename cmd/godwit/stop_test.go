package main

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/rundir"
)

func TestStop(t *testing.T) {
	ownGuests(t)
	for _, tt := range []struct {
		behaviour, timeout, want string
	}{
		{obedient, "1m", `shut down after \d+(\.\d+)?m?s`},
		{paused, "1m", `shut down after \d+(\.\d+)?m?s`},
		{rebooting, "1m", `shut down after \d+(\.\d+)?m?s`},
		{deaf, "100ms", `did not shut down within 100ms, and was killed`},
		{hung, "100ms", `did not answer within 100ms, and was killed`},
		{silent, "100ms", `did not answer within 100ms, and was killed`},
		{notStarted, "1m", `had not been started, and was killed`},
		{deaf, "0s", `did not (answer|shut down) within 0s, and was killed`},
	} {
		t.Run(tt.behaviour+" "+tt.timeout, func(t *testing.T) {
			startProcess(t, "web", tt.behaviour)
			out, _, err := runCobra(t, newStop(), "web", "--timeout", tt.timeout)
			if err != nil || !regexp.MustCompile(`^web: `+tt.want+`\n$`).MatchString(out) {
				t.Errorf("said %q, %v, want %s", out, err, tt.want)
			}
			expectGone(t, "web")
		})
	}
}

// TestStopSeveral has them shut down at the same time, whatever becomes of others.
func TestStopSeveral(t *testing.T) {
	ownGuests(t)
	startProcess(t, "a", deaf)
	startProcess(t, "b", obedient)
	startProcess(t, "c", deaf)
	start := time.Now()
	out, _, err := runCobra(t, newStop(), "c", "b", "nobody", "a", "--timeout", "1s")
	if err == nil || err.Error() != "guest nobody is not running: godwit ps lists those that are" {
		t.Errorf("error %v", err)
	}
	if lines := strings.Split(out, "\n"); len(lines) != 4 || !strings.HasPrefix(lines[0], "b: shut down") {
		t.Errorf("said\n%s", out)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	for _, name := range []string{"a", "b", "c"} {
		expectGone(t, name)
	}
	if _, _, err := runCobra(t, newStop(), "a", "--timeout", "-1s"); err == nil || !strings.Contains(err.Error(), "want a time") {
		t.Errorf("a negative time: %v", err)
	}
}

// TestStopInterrupted leaves the guest alone.
func TestStopInterrupted(t *testing.T) {
	ownGuests(t)
	startProcess(t, "web", deaf)
	vm, c, err := openGuest("web")
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if did, err := stopGuest(ctx, vm, c, time.Minute); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "guest web still runs") {
		t.Errorf("said %q, %v", did, err)
	}
	if again, err := rundir.Open("web"); err != nil {
		t.Error(err)
	} else {
		again.Close()
	}
}

func TestKill(t *testing.T) {
	ownGuests(t)
	startProcess(t, "a", hung)
	startProcess(t, "b", obedient)
	_, _, err := runCobra(t, newKill(), "a", "nobody", "b")
	if err == nil || err.Error() != "guest nobody is not running: godwit ps lists those that are" {
		t.Errorf("error %v", err)
	}
	expectGone(t, "a")
	expectGone(t, "b")
}

func TestRm(t *testing.T) {
	ownGuests(t)
	startProcess(t, "running", silent)
	killed := startProcess(t, "killed", silent)
	killed.Process.Kill()
	killed.Wait()
	_, _, err := runCobra(t, newRm(), "running", "killed", "nobody", "bad/name")
	const want = `name "bad/name": want up to 63 letters, digits, dots, dashes and underscores, a letter or digit first
there is nothing of a guest nobody: godwit ps lists those that run
guest running runs: stop it with: godwit stop running`
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	expectGone(t, "killed")
	vm, err := rundir.Open("running")
	if err != nil {
		t.Fatal(err)
	}
	vm.Close()
}

// TestHelp: every command tells what it is for, and shows how.
func TestHelp(t *testing.T) {
	for _, c := range []interface {
		UsageString() string
	}{newPS(), newPause(), newResume(), newStop(), newKill(), newRm(), newAttach(), newEvents()} {
		if text := c.UsageString(); !strings.Contains(text, "Examples:\n  ") {
			t.Errorf("no examples:\n%s", text)
		}
	}
}
