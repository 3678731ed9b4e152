package testenv

import (
	"fmt"
	"runtime"
	"testing"
)

// recorder notes how a test ends instead of ending it.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Helper() {}

func (r *recorder) Skipf(format string, args ...any) {
	r.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestLacks(t *testing.T) {
	for _, test := range []struct{ ci, skipped, failed string }{
		{"", "no tool", ""},
		{"1", "", "not skipped because CI is set: no tool"},
	} {
		t.Setenv(CIVariable, test.ci)
		var r recorder
		done := make(chan struct{})
		go func() {
			defer close(done)
			Lacks(&r, "no %s", "tool")
		}()
		<-done
		if r.skipped != test.skipped || r.failed != test.failed {
			t.Errorf("with CI=%q: skipped %q, failed %q", test.ci, r.skipped, r.failed)
		}
	}
}
