// Package model has the handover of a guest between two hosts as a model for spin,
// written apart from the Go code that does it (migrate/handover).
package model

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/internal/testenv"
)

// mutants are the mistakes that the model can be told to make.
var mutants = []string{
	"RESUME_ON_SEND_ERROR",
	"RESUME_ON_TIMEOUT",
	"START_AT_READY",
	"RUN_ON_TIMEOUT",
	"COMMIT_BEFORE_JOURNAL",
	"RUN_BEFORE_JOURNAL",
	"REFUSED_SAID_BUT_NOT_JOURNALED",
	"RESUME_ON_UNKNOWN_WRITE",
	"OWNER_PRUNED",
}

func TestHandover(t *testing.T) {
	for _, tool := range []string{"spin", "cc"} {
		if _, err := exec.LookPath(tool); err != nil {
			testenv.Lacks(t, "the model is checked with spin and a C compiler: %v (apt-get install spin gcc)", err)
		}
	}
	t.Run("model", func(t *testing.T) {
		t.Parallel()
		out := check(t)
		if !holds.MatchString(out) {
			t.Fatalf("spin found a way to break a promise, or did not end:\n%s", out)
		}
		// A model that gets nowhere breaks nothing.
		for _, step := range unreached.FindAllString(out, -1) {
			if !strings.HasSuffix(step, `"-end-"`) { // the loops have none
				t.Errorf("a step of the model is never taken: %s", strings.TrimSpace(step))
			}
		}
	})
	for _, m := range mutants {
		t.Run(m, func(t *testing.T) {
			t.Parallel()
			if out := check(t, "-D"+m); !strings.Contains(out, "assertion violated") {
				t.Errorf("not caught:\n%s", out)
			}
		})
	}
}

// TestMutantsOfModel compares the list with the model: a name that is not in it would
// be the model itself.
func TestMutantsOfModel(t *testing.T) {
	text, err := os.ReadFile("handover.pml")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^#ifdef (\w+)$`).FindAllStringSubmatch(string(text), -1) {
		names = append(names, m[1])
	}
	for _, m := range mutants {
		if !strings.Contains(string(text), "#ifdef "+m+"\n") {
			t.Errorf("%s is not in the model, which has %v", m, names)
		}
	}
	if len(names) != len(mutants) {
		t.Errorf("the model has the mutants %v, the list has %v", names, mutants)
	}
}

var (
	holds     = regexp.MustCompile(`(?m)^State-vector .*, errors: 0$`)
	states    = regexp.MustCompile(`(?m)^ *\d+ states, stored`)
	unreached = regexp.MustCompile(`(?m)^\t\S+:\d+, state .*$`)
)

// check has spin go through all states of the model, and returns its report. A search
// that is cut short is an error.
func check(t *testing.T, defines ...string) string {
	t.Helper()
	model, err := filepath.Abs("handover.pml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
		return string(out)
	}
	run("spin", append(append([]string{"-a"}, defines...), model)...)
	// Unoptimized: to compile takes longer than to run.
	run("cc", "-O0", "-w", "-DSAFETY", "-o", "pan", "pan.c")
	out := run(filepath.Join(dir, "pan"), "-m100000", "-w20")
	if strings.Contains(out, "too small") || strings.Contains(out, "out of memory") {
		t.Fatalf("the search was cut short:\n%s", out)
	}
	t.Logf("%s", strings.TrimSpace(states.FindString(out)))
	return out
}
