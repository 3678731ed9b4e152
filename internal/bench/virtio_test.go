package bench

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/internal/testenv"
)

// TestDeviceCases runs the cases about devices, briefly. Targets may be missed: a
// test machine is no place for them.
func TestDeviceCases(t *testing.T) {
	if testing.Short() {
		t.Skip("runs benchmarks")
	}
	needKVM(t)
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		testenv.Lacks(t, "qemu-system-x86_64 is not installed")
	}
	for _, c := range slices.Concat(blockCases(), netCases(), vsockCases()) {
		t.Run(c.Name, func(t *testing.T) {
			e := testEnv()
			e.Dir, e.Quick = t.TempDir(), true
			r, err := c.Run(t.Context(), e)
			var skip *SkipError
			if errors.As(err, &skip) {
				testenv.Lacks(t, "%s", skip.Reason)
			}
			if err != nil {
				t.Fatal(err)
			}
			r.conclude()
			for _, m := range r.Metrics {
				if s := m.find(godwitName); s == nil || len(s.Samples) == 0 || m.Name != "allocations" && s.Summary.Min <= 0 {
					t.Errorf("%s: %+v", m.Name, s)
				}
			}
			var out strings.Builder
			report := &Report{Cases: []CaseReport{{Name: c.Name, What: c.What, Result: r}}}
			if err := report.WriteTable(&out); err != nil {
				t.Fatal(err)
			}
			t.Log("\n" + out.String())
		})
	}
}
