package vmm

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/devices/virtio/console"
	"github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/devices/virtio/rng"
	"github.com/godwit-vmm/godwit/devices/virtio/vsock"
	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/metrics"
	"github.com/godwit-vmm/godwit/internal/metrics/metricstest"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/vcpu"
)

// scrape reads the metrics.
func scrape(t *testing.T, r *metrics.Registry) map[string]*metricstest.Family {
	t.Helper()
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	families, err := metricstest.Parse(b.String())
	if err != nil {
		t.Fatalf("%v in\n%s", err, b.String())
	}
	return families
}

// value is that of a metric, 0 if there is none.
func (f *fixture) value(name string, labels ...string) float64 {
	f.t.Helper()
	if family := scrape(f.t, f.Metrics())[name]; family != nil {
		return family.Values[metricstest.Key(name, labels...)]
	}
	return 0
}

// TestMetricsOfReboots: what machines have counted is not lost with them.
func TestMetricsOfReboots(t *testing.T) {
	const exits = 1000
	f := newVM(t, kernel(t)(micro.PortLoop(micro.Write, 0x2ff, micro.Byte, exits, micro.Reset())), nil)
	if got := f.value("godwit_state", "state", "not_started"); got != 1 {
		t.Errorf("before the start the state is %v", got)
	}
	if family := scrape(t, f.Metrics())["godwit_start_time_seconds"]; family != nil {
		t.Errorf("before the start: %+v", family)
	}
	f.must(f.Start())
	f.hears(EventRebooted, 3)
	io := func() float64 { return f.value("godwit_vcpu_exits_total", "vcpu", "0", "reason", "io") }
	running := io()
	f.Kill(nil)
	<-f.Done()
	reboots := f.value("godwit_reboots_total")
	if reboots < 3 || running < 3*exits || io() < max(running, reboots*exits) {
		t.Errorf("%v port accesses after 3 reboots, and %v after %v and the end", running, io(), reboots)
	}
	if io() != io() {
		t.Error("the figures of a guest that has ended change")
	}
	if f.value("godwit_state", "state", "ended") != 1 || f.value("godwit_memory_used_bytes") != 0 {
		t.Errorf("after the end: %+v", scrape(t, f.Metrics()))
	}
}

func TestMetricsOfSnapshots(t *testing.T) {
	dir := t.TempDir()
	f := newVM(t, checker(t), nil)
	f.must(f.Configure(func(c *Config) error {
		c.Memory, c.Balloon = 64<<20, &balloon.Config{}
		return nil
	}))
	began := time.Now()
	f.must(f.Start())
	f.runs()
	f.snapshot(SnapshotRequest{Path: filepath.Join(dir, "live"), Live: true, Track: true})
	f.must(f.Pause())
	f.snapshot(SnapshotRequest{Path: filepath.Join(dir, "diff"), Diff: true})
	if _, err := f.Snapshot(t.Context(), SnapshotRequest{Path: filepath.Join(dir, "live")}); err == nil {
		t.Error("a second snapshot in the same place")
	}
	for _, tt := range []struct {
		name, kind string
		want       float64
	}{
		{"godwit_snapshot_seconds_count", "full", 1}, {"godwit_snapshot_seconds_count", "diff", 1},
		{"godwit_snapshot_pause_seconds_count", "full", 1},
		{"godwit_snapshot_pause_seconds_count", "diff", 0}, // it was paused already
		{"godwit_snapshot_failures_total", "full", 1}, {"godwit_snapshot_failures_total", "diff", 0},
	} {
		family := scrape(t, f.Metrics())[strings.TrimSuffix(tt.name, "_count")]
		if got := family.Values[metricstest.Key(tt.name, "kind", tt.kind)]; got != tt.want {
			t.Errorf("%s of %s is %v, want %v", tt.name, tt.kind, got, tt.want)
		}
	}
	if got := f.value("godwit_snapshot_memory_bytes_total", "kind", "full"); got < 16<<20 {
		t.Errorf("%v bytes were copied of a guest that uses 16 MiB", got)
	}
	if used := f.value("godwit_memory_used_bytes"); used < 16<<20 || used > 64<<20 {
		t.Errorf("the guest uses %v bytes", used)
	}
	if up := f.value("godwit_uptime_seconds"); up <= 0 || up > time.Since(began).Seconds() {
		t.Errorf("up for %v s", up)
	}
	if started := f.value("godwit_start_time_seconds"); started < float64(began.Unix()) || started > float64(time.Now().Unix()+1) {
		t.Errorf("started at %v", started)
	}
	if took := f.value("godwit_start_seconds"); took <= 0 || took > 60 {
		t.Errorf("the start took %v s", took)
	}
}

// TestDeviceReset has a guest break the rules of its entropy device.
func TestDeviceReset(t *testing.T) {
	elf, err := micro.VirtioAttack{Seed: 4, Count: micro.Forever, Memory: 32 << 20}.ELF()
	var resets chan Event
	f := newVM(t, kernel(t)(elf, err), func(o *Options) {
		tell := o.Event
		resets = make(chan Event, 100)
		o.Event = func(e Event) {
			tell(e)
			if e.Kind == EventDeviceReset {
				resets <- e // after tell: the test goes on with this
			}
		}
	})
	f.must(f.Start())
	select {
	case e := <-resets:
		if e.Device != "rng" || !strings.Contains(e.Err.Error(), "virtio device rng: ") {
			t.Errorf("got %+v", e)
		}
	case <-time.After(time.Minute):
		t.Fatal("the guest never broke a rule")
	}
	if got := f.value("godwit_device_resets_total"); got != 1 {
		t.Errorf("counted %v", got)
	}
	if told := f.told(); !slices.Contains(told, EventDeviceReset) || slices.Contains(told, EventTrouble) {
		t.Errorf("told of %v", told)
	}
}

func TestPowerButtonEvent(t *testing.T) {
	f := newVM(t, checker(t), nil)
	if err := f.PowerButton(); err == nil {
		t.Error("pressed before the start")
	}
	f.must(f.Start())
	f.must(f.PowerButton())
	if want := []EventKind{EventStarted, EventPowerButton}; !slices.Equal(f.told(), want) {
		t.Errorf("told of %v, want %v", f.told(), want)
	}
}

// TestDocumentedReadings: a machine with all devices, whose guest tells all that it can,
// has the figures that the document says, as far as they are of devices.
func TestDocumentedReadings(t *testing.T) {
	all := machine.Stats{
		Exits: [][]vcpu.ExitCount{{{Reason: kvm.KVM_EXIT_IO, Count: 1}, {Reason: 38, Count: 2}, {Reason: 48, Count: 3}}},
		Disks: []blk.Stats{{}}, Nets: []net.Stats{{}, {}},
		RNG: &rng.Stats{}, Vsock: &vsock.Stats{}, HVC: &console.Stats{},
		Balloon: &balloon.Stats{Updated: time.Now()},
	}
	var rs readings
	rs.addStats(all, []string{"0"}, []string{"a", "b"})
	r := metrics.New()
	r.Collect(func(s *metrics.Sink) { give(s, rs) })
	rows, err := metricstest.ReadDocument("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	families := scrape(t, r)
	if missing := metricstest.Undocumented(families, rows); missing != nil {
		t.Errorf("docs/metrics.md lacks:\n%s", strings.Join(missing, "\n"))
	}
	for name := range rows {
		if families[name] == nil && (strings.HasPrefix(name, "godwit_net_") || strings.HasPrefix(name, "godwit_block_") || strings.HasPrefix(name, "godwit_guest_")) {
			t.Errorf("docs/metrics.md has %s, which there is not", name)
		}
	}
}

func TestReadingsPlus(t *testing.T) {
	var past, now readings
	past.counter("c", "", 3, "vcpu", "0")
	past.counter("c", "", 5, "vcpu", "1")
	past.gauge("g", "", 7)
	now.counter("c", "", 10, "vcpu", "0")
	now.gauge("g", "", 1)
	now.counter("d", "", 2)
	got := make(map[string]float64)
	for _, r := range now.plus(past.counters()) {
		got[r.name+strings.Join(r.labels, " ")] += r.value
	}
	for key, want := range map[string]float64{"cvcpu 0": 13, "cvcpu 1": 5, "g": 1, "d": 2} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
}

func TestReadingsPlusTimes(t *testing.T) {
	var past, now readings
	past.times("t", "", &blk.Counts{Time: time.Second, Times: [13]uint64{1, 0, 2}})
	now.times("t", "", &blk.Counts{Time: 2 * time.Second, Times: [13]uint64{10, 1}})
	for range 2 { // the past stays what it was
		got := slices.Clone(now)
		got[0].counts = slices.Clone(got[0].counts)
		got = got.plus(past.counters())
		if len(got) != 1 || got[0].value != 3 || !slices.Equal(got[0].counts[:4], []uint64{11, 1, 2, 0}) {
			t.Errorf("got %+v", got)
		}
	}
}
