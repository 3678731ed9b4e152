// Package testenv says what a test does on a machine that lacks what it needs:
// a developer's run goes on without it, the project's own CI fails, so that
// nothing that matters is ever silently left out there.
package testenv

import (
	"os"
	"testing"
)

// CIVariable is set to anything in continuous integration.
const CIVariable = "CI"

// Lacks skips the test because of what the machine lacks, or fails it in
// continuous integration.
func Lacks(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(CIVariable) != "" {
		t.Fatalf("not skipped because "+CIVariable+" is set: "+format, args...)
	}
	t.Skipf(format, args...)
}
