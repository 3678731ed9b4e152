package tests

import (
	"strings"
	"testing"
)

// TestVirtioConsole has a shell on hvc0.
func TestVirtioConsole(t *testing.T) {
	t.Parallel()
	r := console(t, []step{{"# ", "tty; exit\n"}}, "--memory", "256M", "--console", "hvc")
	if r.status != 0 || !strings.Contains(r.stdout, "/dev/hvc0") {
		t.Error(r)
	}
}
