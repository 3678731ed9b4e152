package vmm

import (
	"strconv"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/internal/metrics"
	"github.com/godwit-vmm/godwit/internal/version"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/migrate"
)

// figures are what a VM counts by itself. What a machine and its devices count they
// keep, and are asked when somebody wants to see it.
type figures struct {
	reboots, panics, troubles, deviceResets metrics.Counter
	// starting is how long the start has taken, in seconds.
	starting metrics.Gauge

	// registry is made when it is asked for, with what only it can make.
	once       sync.Once
	registry   *metrics.Registry
	full, diff snapshotFigures

	// past has the counters of the machines that are gone. VM.use is over it.
	past readings
}

// snapshotFigures are those of the snapshots of one kind.
type snapshotFigures struct {
	seconds, pause  *metrics.Histogram
	bytes, failures *metrics.Counter
}

// snapshotSeconds are bounds for times that a snapshot may take: it depends on the
// guest's memory and on the disk.
func snapshotSeconds() []float64 {
	return []float64{.01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 20, 50, 100, 200, 500}
}

func newSnapshotFigures(r *metrics.Registry, kind string) snapshotFigures {
	return snapshotFigures{
		seconds:  r.Histogram("godwit_snapshot_seconds", "Time that snapshots have taken.", snapshotSeconds(), "kind", kind),
		pause:    r.Histogram("godwit_snapshot_pause_seconds", "Time that a running guest stood still for a snapshot.", metrics.Latencies(), "kind", kind),
		bytes:    r.Counter("godwit_snapshot_memory_bytes_total", "Memory that was copied for snapshots, some of it more than once.", "kind", kind),
		failures: r.Counter("godwit_snapshot_failures_total", "Snapshots that failed.", "kind", kind),
	}
}

// Metrics are the figures of the guest, also when it has ended. The counters go on
// over its reboots.
func (v *VM) Metrics() *metrics.Registry {
	f := &v.figures
	f.once.Do(func() {
		f.registry = metrics.New()
		f.full, f.diff = newSnapshotFigures(f.registry, "full"), newSnapshotFigures(f.registry, "diff")
		f.registry.Collect(v.collectLife)
		f.registry.Collect(v.collectMachine)
	})
	return f.registry
}

// count counts an event.
func (f *figures) count(e Event) {
	switch e.Kind {
	case EventRebooted:
		f.reboots.Inc()
	case EventPanicked:
		f.panics.Inc()
	case EventTrouble:
		f.troubles.Inc()
	case EventDeviceReset:
		f.deviceResets.Inc()
	}
}

// countSnapshot counts a snapshot that began at a time and is over now.
func (v *VM) countSnapshot(began time.Time, r SnapshotRequest, paused bool, report *migrate.Report, err *error) {
	v.Metrics()
	f := &v.figures.full
	if r.Diff {
		f = &v.figures.diff
	}
	f.bytes.Add(report.Bytes)
	if *err != nil {
		f.failures.Inc()
		return
	}
	f.seconds.Observe(time.Since(began).Seconds())
	if !paused {
		f.pause.Observe(report.Pause.Seconds())
	}
}

// countStart notes how long a start has taken that began at a time, if it was one.
func (v *VM) countStart(began time.Time, err *error) {
	if *err == nil {
		v.figures.starting.Set(time.Since(began).Seconds())
	}
}

// collectLife gives the figures of the guest's life.
func (v *VM) collectLife(s *metrics.Sink) {
	s.Gauge("godwit_info", "Always 1, with the guest's name and the VMM's version.", 1,
		"name", v.Name(), "version", version.String())
	phase := v.Phase()
	for p, label := range phaseLabels {
		is := 0.0
		if p == phase {
			is = 1
		}
		s.Gauge("godwit_state", "1 for the state that the guest is in, 0 for the others.", is, "state", label)
	}
	c := v.Config()
	s.Gauge("godwit_vcpus", "Virtual processors of the guest.", float64(c.CPUs))
	s.Gauge("godwit_memory_size_bytes", "Size of the guest's memory.", float64(c.Memory))
	if started := v.Started(); !started.IsZero() {
		s.Gauge("godwit_start_time_seconds", "When the guest was started or restored, in seconds since 1970.", float64(started.UnixMicro())/1e6)
		s.Gauge("godwit_start_seconds", "Time that the start or restore of the guest has taken.", v.figures.starting.Value())
		if phase != Ended {
			s.Gauge("godwit_uptime_seconds", "Time since the guest was started or restored, pauses and reboots included.", time.Since(started).Seconds())
		}
	}
	f := &v.figures
	s.Counter("godwit_reboots_total", "Reboots of the guest.", float64(f.reboots.Value()))
	s.Counter("godwit_panics_total", "Panics that the guest's kernel has told of.", float64(f.panics.Value()))
	s.Counter("godwit_device_resets_total", "Virtio devices that want a reset because their driver broke the rules, or the host failed.", float64(f.deviceResets.Value()))
	s.Counter("godwit_troubles_total", "Kinds of trouble that the guest or the host has made for a device, other than resets.", float64(f.troubles.Value()))
}

// phaseLabels are the phases as metrics call them.
var phaseLabels = map[Phase]string{NotStarted: "not_started", Running: "running", Paused: "paused", Ended: "ended"}

// collectMachine gives the figures of the machine of now, if there is one, and the
// counters of those before.
func (v *VM) collectMachine(s *metrics.Sink) {
	c := v.Config()
	v.use.RLock()
	defer v.use.RUnlock()
	var now readings
	if session := v.current.Load(); session != nil {
		now.addMemory(session.m)
		now.addStats(session.m.Stats(), c.driveIDs(), c.netIDs())
	}
	give(s, now.plus(v.figures.past))
}

// give gives readings to whoever asks.
func give(s *metrics.Sink, rs readings) {
	for _, r := range rs {
		switch {
		case r.counts != nil:
			s.Histogram(r.name, r.help, r.bounds, r.counts, r.value, r.labels...)
		case r.counter:
			s.Counter(r.name, r.help, r.value, r.labels...)
		default:
			s.Gauge(r.name, r.help, r.value, r.labels...)
		}
	}
}

// keepCounters keeps those of a machine that will be closed. The caller holds use.
func (v *VM) keepCounters(m *machine.Machine) {
	var now readings
	c := v.Config()
	now.addStats(m.Stats(), c.driveIDs(), c.netIDs())
	v.figures.past = now.counters().plus(v.figures.past)
}

// driveIDs are the IDs of the disks.
func (c *Config) driveIDs() []string {
	var ids []string
	for i, d := range c.Drives {
		ids = append(ids, driveID(i, d))
	}
	return ids
}

// netIDs are the IDs of the network cards.
func (c *Config) netIDs() []string {
	var ids []string
	for i, n := range c.Nets {
		if n.ID == "" {
			n.ID = strconv.Itoa(i)
		}
		ids = append(ids, n.ID)
	}
	return ids
}
