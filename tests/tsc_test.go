package tests

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/internal/lab"
)

// TestLostTSC boots on a host whose KVM has lost the TSC of its guests, which
// must be an error and not a guest whose timers never fire. A tolerance of
// -1000 ppm makes KVM find the host's own TSC frequency too far away.
func TestLostTSC(t *testing.T) {
	t.Parallel()
	r, release := host(t)
	defer release()
	e, emulated := r.(*emulated)
	if !emulated {
		t.Skip("changes a parameter of the host's KVM: in an emulated host only")
	}
	tolerate := func(ppm string) {
		status, err := e.host.Run(context.WithoutCancel(t.Context()), lab.Cmd{Args: []string{
			"sh", "-c", "echo " + ppm + " > /sys/module/kvm/parameters/tsc_tolerance_ppm"}})
		if err != nil || status != 0 {
			t.Fatalf("set KVM's tolerance to %s: status %d, %v", ppm, status, err)
		}
	}
	tolerate("4294966296")
	defer tolerate("250")
	var stderr bytes.Buffer
	status, err := run(t.Context(), r, nil, nil, &stderr, "boot", "--memory", "256M", "--", "true")
	if err != nil {
		t.Fatal(err)
	}
	if status != 125 || !strings.Contains(stderr.String(), "TSC stands still") {
		t.Errorf("status %d, stderr %q", status, stderr.String())
	}
}
