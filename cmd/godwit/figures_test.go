package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/api/client"
	"github.com/godwit-vmm/godwit/internal/events"
	"github.com/godwit-vmm/godwit/internal/metrics"
	"github.com/godwit-vmm/godwit/internal/metrics/metricstest"
	"github.com/godwit-vmm/godwit/internal/rundir"
)

// scrape reads the metrics as Prometheus does.
func scrape(t *testing.T, socket string) map[string]*metricstest.Family {
	t.Helper()
	c := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	answer, err := c.Get("http://godwit/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != metrics.ContentType {
		t.Fatalf("%v, %s, %s: %s", err, answer.Status, answer.Header.Get("Content-Type"), text)
	}
	families, err := metricstest.Parse(string(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return families
}

// sum is that of all values of a metric.
func sum(f *metricstest.Family) (n float64) {
	if f != nil {
		for _, v := range f.Values {
			n += v
		}
	}
	return n
}

// asker is a guest that asks for random bytes for ever.
func asker(t *testing.T) string {
	elf, err := micro.Entropy{Size: 512, Requests: micro.Forever}.ELF()
	return microKernel(t, elf, err)
}

// TestFigures scrapes a guest, and follows its events, from its configuration to its
// end.
func TestFigures(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "metrics")
	s := startServer(t, "--id", "figures")
	type followed struct {
		types []events.Type
		err   error
	}
	told := make(chan followed, 1)
	go func() {
		var f followed
		f.err = s.Events(t.Context(), "0", func(e events.Event) error {
			f.types = append(f.types, e.Type)
			return nil
		})
		told <- f
	}()
	flush := object{"action_type": "FlushMetrics"}
	s.must("PUT", "/metrics", object{"metrics_path": file})
	s.must("PUT", "/machine-config", object{"vcpu_count": 1, "mem_size_mib": 64})
	s.must("PUT", "/balloon", object{"amount_mib": 3, "deflate_on_oom": true})
	s.must("PUT", "/boot-source", object{"kernel_image_path": asker(t)})
	if err := s.Do(t.Context(), "PUT", "/actions", flush, nil); err == nil {
		t.Error("metrics are flushed before the start")
	}
	before := scrape(t, s.socket)
	if before["godwit_vcpu_exits_total"] != nil || before["godwit_state"].Values[metricstest.Key("godwit_state", "state", "not_started")] != 1 {
		t.Errorf("before the start: %+v", before["godwit_state"])
	}
	s.must("PUT", "/actions", object{"action_type": "InstanceStart"})
	first := growing(t, s.socket, nil)
	second := growing(t, s.socket, first)
	for name, want := range map[string]float64{
		"godwit_vcpus": 1, "godwit_memory_size_bytes": 64 << 20, "godwit_memory_granted_bytes": 64 << 20,
		"godwit_balloon_target_bytes": 3 << 20, "godwit_state": 1, "godwit_reboots_total": 0, "godwit_info": 1,
		"godwit_events_clients": 1, "godwit_events_published_total": 1,
	} {
		if got := sum(second[name]); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	s.must("PUT", "/actions", flush)
	s.must("PATCH", "/vm", object{"state": "Paused"})
	s.must("PATCH", "/vm", object{"state": "Resumed"})
	s.must("PUT", "/snapshot/create", object{"snapshot_path": filepath.Join(dir, "snapshot"), "live": true})
	if got := scrape(t, s.socket)["godwit_snapshot_seconds"].Values[metricstest.Key("godwit_snapshot_seconds_count", "kind", "full")]; got != 1 {
		t.Errorf("%v snapshots", got)
	}
	s.must("PUT", "/actions", object{"action_type": "SendCtrlAltDel"})
	for range 2 {
		if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); !strings.Contains(s.stderr.String(), "power button") && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
	}
	s.end(exitFailed)
	want := []events.Type{
		events.Started, events.Paused, events.Resumed, events.Snapshot, events.PowerButton, events.PowerButton, events.Ended,
	}
	if got := <-told; got.err != nil || !slices.Equal(got.types, want) {
		t.Errorf("events %v, %v, want %v", got.types, got.err, want)
	}
	checkFile(t, file)
}

// growing scrapes until all figures of work are larger than before.
func growing(t *testing.T, socket string, before map[string]*metricstest.Family) map[string]*metricstest.Family {
	t.Helper()
	var now map[string]*metricstest.Family
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		now = scrape(t, socket)
		grown := true
		for _, name := range []string{
			"godwit_vcpu_exits_total", "godwit_entropy_requests_total", "godwit_entropy_bytes_total",
			"godwit_memory_used_bytes", "godwit_uptime_seconds", "process_cpu_seconds_total",
		} {
			switch name {
			case "godwit_vcpu_exits_total", "godwit_memory_used_bytes":
				// These stand still when the driver is set up.
				grown = grown && sum(now[name]) > 0 && sum(now[name]) >= sum(before[name])
			default:
				grown = grown && sum(now[name]) > sum(before[name])
			}
		}
		if grown {
			return now
		}
	}
	t.Fatalf("the figures do not grow: %+v", now)
	return nil
}

// checkFile checks the lines of TestFigures' file: one that was asked for, and the last.
func checkFile(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines, want 2:\n%s", len(lines), text)
	}
	for i, line := range lines {
		var got struct {
			Time    int64 `json:"utc_timestamp_ms"`
			VCPU    map[string]float64
			Entropy map[string]float64
			State   map[string]float64
		}
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if time.Since(time.UnixMilli(got.Time)).Abs() > 5*time.Minute || got.Entropy["requests"] == 0 {
			t.Errorf("line %d: %s", i, line)
		}
		// The driver is set up before the first line.
		if i == 0 && got.VCPU["exits_0_mmio"]+got.VCPU["exits_0_io"] == 0 {
			t.Errorf("no exits in %s", line)
		}
	}
}

// TestDocumentedMetrics holds docs/metrics.md against a guest. TestDocumentedReadings of
// package vmm does so for devices that a test here cannot have.
func TestDocumentedMetrics(t *testing.T) {
	needKVM(t)
	kernel := asker(t)
	got := runProgram(t, nil, "boot", "--allow-software-kvm", "--memory", "64M", "--detach", "--name", "documented",
		"--kernel", kernel, "--balloon", "0", "--console", "hvc")
	if got.status != 0 {
		t.Fatalf("%+v", got)
	}
	vm, err := rundir.Open("documented")
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	t.Cleanup(func() { syscall.Kill(vm.PID, syscall.SIGKILL) })
	socket := vm.Path(rundir.APIFile)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, err := client.New(socket).Info(t.Context()); !errors.Is(err, client.ErrNobody) {
			break
		}
	}
	families := growing(t, socket, nil)
	rows, err := metricstest.ReadDocument("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	if missing := metricstest.Undocumented(families, rows); missing != nil {
		t.Errorf("docs/metrics.md lacks:\n%s", strings.Join(missing, "\n"))
	}
	for name := range rows {
		if families[name] == nil && !strings.HasPrefix(name, "godwit_net_") && !strings.HasPrefix(name, "godwit_block_") && !strings.HasPrefix(name, "godwit_guest_") {
			t.Errorf("docs/metrics.md has %s, which there is not", name)
		}
	}
}
