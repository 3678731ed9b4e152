package bench

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func sampleReport() *Report {
	done := &Result{
		Metrics: []*Metric{
			{Name: "wall clock", Unit: "ms", goals: []goal{atMostAbove("godwit", "C floor", 4), atMost("godwit", 5)}, Series: []*Series{
				{Contestant: "C floor", Samples: []float64{2, 2.5, 3}},
				{Contestant: "godwit", Samples: []float64{6, 6, 6}},
			}},
			{Name: "user + system", Unit: "ms", Series: []*Series{{Contestant: "C floor", Samples: []float64{1}}}},
		},
		Parts: []Part{{"open", 0.5}},
		Notes: []string{"QEMU microvm left out: not installed"},
	}
	done.conclude()
	return &Report{
		Version: reportVersion, Date: time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC), Commit: "abc", Quick: true,
		Host: Host{CPU: "Test CPU", CPUs: 2, MemoryMiB: 1024, Kernel: "6.1", Go: "go1", KVM: "hardware", Load: 1.5},
		Cases: []CaseReport{
			{Name: "start", What: "start and end", Seconds: 1, Result: done},
			{Name: "pio", What: "port I/O", Skipped: "no cc"},
			{Name: "mmio", What: "memory-mapped I/O", Error: "it broke"},
		},
	}
}

func TestWriteTable(t *testing.T) {
	const want = `godwit abc, 2026-01-02 03:04 UTC
Test CPU, 2 CPUs, 1024 MiB, Linux 6.1, go1, KVM: hardware
the machine is busy (load 1.5): figures are high and spread
a quick run: rough figures

start: start and end
  wall clock, ms     median  min   quartiles    max   against C floor
    C floor          2.50    2.00  2.25 - 2.75  3.00
    godwit           6.00    6.00  6.00 - 6.00  6.00  2.40 x, +3.50
  user + system, ms
    C floor          1.00    1.00  1.00 - 1.00  1.00
  where godwit's time goes, ms
    open  0.500
  pass: wall clock: godwit <= C floor + 4 ms (3.50 of at most 4.00)
  miss: wall clock: godwit <= 5 ms (6.00 of at most 5.00)
  note: QEMU microvm left out: not installed

pio: port I/O
  skipped: no cc

mmio: memory-mapped I/O
  failed: it broke
`
	var b bytes.Buffer
	if err := sampleReport().WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestWriteTableFails(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	if err := sampleReport().WriteTable(w); err == nil {
		t.Error("no error from a closed file")
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "report.json")
	if err := os.WriteFile(path, []byte("an older report"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := sampleReport()
	if err := r.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	for _, m := range r.Cases[0].Metrics {
		m.goals = nil // not part of the file
	}
	if !reflect.DeepEqual(&back, r) {
		t.Errorf("read back %+v, wrote %+v", back, r)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("files left behind: %v", left)
	}
	if err := r.WriteFile(filepath.Join(dir, "no", "such", "folder")); err == nil || !strings.HasPrefix(err.Error(), "benchmark report: ") {
		t.Errorf("error %v for a folder that does not exist", err)
	}
}

func TestWriteFileKeepsOldOneOnFailure(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "folder")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(target, []byte("x")); err == nil {
		t.Error("a folder was replaced by a file")
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 || !left[0].IsDir() {
		t.Errorf("left behind: %v", left)
	}
}

func TestFailed(t *testing.T) {
	if got := sampleReport().Failed(); !reflect.DeepEqual(got, []string{"mmio"}) {
		t.Errorf("failed cases %v, want mmio", got)
	}
}
