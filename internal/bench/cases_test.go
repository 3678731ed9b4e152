package bench

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/testenv"
)

func needKVM(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		testenv.Lacks(t, "no KVM: %v", err)
	}
	f.Close()
}

func TestFloor(t *testing.T) {
	needKVM(t)
	e := testEnv()
	e.Dir = t.TempDir()
	floor, err := buildFloor(t.Context(), e)
	var skip *SkipError
	if errors.As(err, &skip) {
		testenv.Lacks(t, "%s", skip.Reason)
	}
	if err != nil {
		t.Fatal(err)
	}
	program, err := writeProgram(e, "loop.elf", func(stop micro.Stop) ([]byte, error) {
		return micro.PortLoop(micro.Write, scratch, micro.Byte, 100, stop)
	}, micro.PowerOff())
	if err != nil {
		t.Fatal(err)
	}
	c, times, err := floor.run(t.Context(), program)
	if err != nil {
		t.Fatal(err)
	}
	if times.Exits != 101 || times.TSC == 0 || times.KHz < 100_000 || times.CPU == 0 || c.wall == 0 {
		t.Errorf("%+v, %+v: want 101 exits and time taken", c, times)
	}
	if _, _, err := floor.run(t.Context(), floor.path); err == nil || !strings.Contains(err.Error(), "not a micro-guest") {
		t.Errorf("error %v for a file that is no micro-guest", err)
	}
}

// builtGodwit is a godwit for a test that runs benchmarks, which it may skip.
func builtGodwit(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds godwit and runs benchmarks")
	}
	needKVM(t)
	if _, err := exec.LookPath("cc"); err != nil {
		testenv.Lacks(t, "the floor needs a C compiler")
	}
	godwit := filepath.Join(t.TempDir(), "godwit")
	build := exec.Command("go", "build", "-o", godwit, "github.com/godwit-vmm/godwit/cmd/godwit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build godwit: %v\n%s", err, out)
	}
	return godwit
}

// TestCases runs the cases about the VMM itself, briefly, against a godwit built
// for the purpose; TestDeviceCases has those about devices. Targets may be missed: a test machine is no place for them.
func TestCases(t *testing.T) {
	godwit := builtGodwit(t)
	report, err := Run(t.Context(), Options{Godwit: godwit, Quick: true, Only: []string{"start", "pio", "mmio", "rss"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(report.Cases), 4; got != want {
		t.Errorf("%d cases, want %d", got, want)
	}
	for _, c := range report.Cases {
		if c.Error != "" || c.Skipped != "" {
			t.Errorf("%s: %s%s", c.Name, c.Error, c.Skipped)
			continue
		}
		if len(c.Metrics[0].Targets) == 0 {
			t.Errorf("%s has no target", c.Name)
		}
		for _, m := range c.Metrics {
			if s := m.find(godwitName); s == nil || m.Name != "allocations" && s.Summary.Min <= 0 {
				t.Errorf("%s, %s: %+v", c.Name, m.Name, s)
			}
		}
	}
	if parts := report.Cases[0].Parts; len(parts) < 5 {
		t.Errorf("godwit's start has only the parts %+v", parts)
	}
	var table strings.Builder
	if err := report.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + table.String())
}

func TestLinuxBootNeedsKernel(t *testing.T) {
	var skip *SkipError
	if _, err := runLinuxBoot(t.Context(), testEnv()); !errors.As(err, &skip) || !strings.Contains(skip.Reason, "--kernel") {
		t.Errorf("error %v, want a skip that names --kernel", err)
	}
}
