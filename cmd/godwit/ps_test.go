package main

import (
	"encoding/json"
	"github.com/godwit-vmm/godwit/internal/api"
	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/godwit-vmm/godwit/migrate/live"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/api/client"
)

func TestPrintGuests(t *testing.T) {
	for _, tt := range []struct {
		name   string
		guests []guestRow
		want   string
	}{
		{"none", nil, "NAME   STATE   CPUS   MEMORY   UPTIME   PID\n"},
		{"several", []guestRow{
			{Name: "db", State: "running", CPUs: 16, Used: 1610612736, Granted: 8 << 30, Uptime: 93784, PID: 1234567},
			{Name: "a-long-name.example", State: "paused", CPUs: 1, Used: 0, Granted: 512 << 20, Uptime: 59.9, PID: 42},
			{Name: "x", State: stateNotAnswering, Uptime: 3599, PID: 7},
		}, `
NAME                  STATE           CPUS   MEMORY    UPTIME   PID
db                    running         16     1.5G/8G   1d02h    1234567
a-long-name.example   paused          1      -/512M    59s      42
x                     not answering   -      -         59m59s   7
`},
		{"a hostile VMM", []guestRow{{Name: "x", State: "run\x1b[2Jning\n"}}, `
NAME   STATE          CPUS   MEMORY   UPTIME   PID
x      run?[2Jning?   -      -        0s       0
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			if err := printGuests(&out, tt.guests); err != nil {
				t.Fatal(err)
			}
			if want := strings.TrimPrefix(tt.want, "\n"); out.String() != want {
				t.Errorf("got\n%swant\n%s", out.String(), want)
			}
		})
	}
}

func TestSizeAndUptimeText(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "-", 1: "0K", 1024: "1K", 1536: "1.5K", 10 << 10: "10K", 1023 << 10: "1023K", 1<<20 - 1: "1M", 512 << 20: "512M",
		10<<30 - 1: "10G", 1536 << 30: "1.5T", 1 << 60: "1048576T",
	} {
		if got := sizeText(n); got != want {
			t.Errorf("%d bytes: %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", time.Minute - 1: "59s", time.Minute: "1m00s", time.Hour + 61*time.Second: "1h01m",
		24 * time.Hour: "1d00h", 1000 * 24 * time.Hour: "1000d00h",
	} {
		if got := uptimeText(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func TestPS(t *testing.T) {
	ownGuests(t)
	if out, _, err := runCobra(t, newPS()); err != nil || out != "NAME   STATE   CPUS   MEMORY   UPTIME   PID\n" {
		t.Errorf("without guests: %q, %v", out, err)
	}
	if out, _, err := runCobra(t, newPS(), "--json"); err != nil || out != "[]\n" {
		t.Errorf("without guests: %q, %v", out, err)
	}
	startVMM(t, "web").setState(client.Paused)
	startProcess(t, "db", hung)
	startProcess(t, "new", silent)
	killed := startProcess(t, "killed", obedient)
	killed.Process.Kill()
	killed.Wait()
	start := time.Now()
	out, _, err := runCobra(t, newPS())
	if took := time.Since(start); took > psTimeout+5*time.Second {
		t.Errorf("it took %v", took)
	}
	want := regexp.MustCompile(`^NAME   STATE           CPUS   MEMORY      UPTIME   PID
db     not answering   -      -           \d+s       \d+
new    starting        -      -           \d+s       \d+
web    paused          2      100M/512M   \d+s       \d+
$`)
	if err != nil || !want.MatchString(out) {
		t.Errorf("got %v\n%s", err, out)
	}
	expectGone(t, "killed")

	out, _, err = runCobra(t, newPS(), "--json")
	var guests []map[string]any
	if err != nil || json.Unmarshal([]byte(out), &guests) != nil || len(guests) != 3 {
		t.Fatalf("got %v\n%s", err, out)
	}
	for key, want := range map[string]any{
		"name": "web", "state": "paused", "cpus": 2.0, "memory_used": float64(100 << 20), "memory_granted": float64(1 << 29), "memory": float64(1 << 30),
	} {
		if got := guests[2][key]; got != want {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
	if _, ok := guests[0]["cpus"]; ok || guests[0]["state"] != stateNotAnswering {
		t.Errorf("one that does not answer: %v", guests[0])
	}
}

// TestPSMoving has what ps says of a guest that moves, to the moment that its process ends:
// a guest that runs on the other host is never shown as one that runs here.
func TestPSMoving(t *testing.T) {
	at := func(phase live.Phase) api.MigrationStatus {
		return api.MigrationStatus{Address: "there:1", Progress: &live.Progress{Phase: phase}}
	}
	for _, test := range []struct {
		name string
		s    api.MigrationStatus
		want string
	}{
		{"never moved", api.MigrationStatus{}, "running"},
		{"moves", at(live.PhaseCopy), "running, moving to there:1"},
		{"let go", at(live.PhaseInDoubt), "running, in doubt to there:1"},
		{"its memory follows", at(live.PhasePostCopy), "running, sending memory to there:1"},
		{"has moved", api.MigrationStatus{Address: "there:1", Report: new(live.Report)}, "moved"},
		{"has not moved", api.MigrationStatus{Address: "there:1", Error: "no"}, "running"},
	} {
		row := guestRow{State: "running"}
		row.moving(movingGuest{rundir.Info{Name: "web"}, test.s})
		if got := row.state(); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}
