package api

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/machine"
)

// What can be done to a guest that is started.

func (s *Server) putAction(r *request) (any, error) {
	var a Action
	if err := r.read(&a); err != nil {
		return nil, err
	}
	switch a.Type {
	case "InstanceStart":
		return nil, s.start()
	case "SendCtrlAltDel":
		// In Use, which waits while the guest reboots.
		return nil, s.vm.Use(func(*machine.Machine) error { return s.vm.PowerButton() })
	case "FlushMetrics":
		// Not in Use: the metrics use the machine themselves.
		if err := s.vm.Use(func(*machine.Machine) error { return nil }); err != nil {
			return nil, err
		}
		return nil, s.flushMetrics()
	}
	return nil, fmt.Errorf("action_type %q: want InstanceStart, SendCtrlAltDel or FlushMetrics", a.Type)
}

func (s *Server) start() error {
	if s.vm.Phase() == vmm.NotStarted && s.vm.Config().Kernel == "" {
		return fault("Start microvm error: Cannot start microvm without kernel configuration.")
	}
	return within("Start microvm", s.vm.Start())
}

func (s *Server) patchVM(r *request) (any, error) {
	var v State
	if err := r.read(&v); err != nil {
		return nil, err
	}
	switch v.State {
	case "Paused":
		return nil, s.vm.Pause()
	case "Resumed":
		return nil, s.vm.Resume()
	}
	return nil, fmt.Errorf("state %q: want Paused or Resumed", v.State)
}

// errNoBalloon says that there is none.
var errNoBalloon = errors.New("the machine has no balloon: configure one before the start")

// useBalloon calls f with the balloon of a guest that is started.
func (s *Server) useBalloon(f func(*balloon.Device) error) error {
	return s.vm.Use(func(m *machine.Machine) error {
		if b := m.Balloon(); b != nil {
			return f(b)
		}
		return errNoBalloon
	})
}

func (s *Server) getBalloon(*request) (any, error) {
	c := s.vm.Config()
	if c.Balloon == nil {
		return nil, errNoBalloon
	}
	answer := balloonOf(c.Balloon)
	err := s.useBalloon(func(b *balloon.Device) error {
		answer.AmountMiB = b.Target() >> 20
		return nil
	})
	if err != nil && !errors.Is(err, vmm.ErrNotStarted) {
		return nil, err
	}
	return answer, nil
}

func (s *Server) patchBalloon(r *request) (any, error) {
	var u BalloonUpdate
	if err := r.read(&u); err != nil {
		return nil, err
	}
	return nil, s.useBalloon(func(b *balloon.Device) error {
		if u.AmountMiB > maxMiB {
			return fmt.Errorf("amount_mib %d is more than any guest has", u.AmountMiB)
		}
		return b.SetTarget(u.AmountMiB << 20)
	})
}

func (s *Server) getStatistics(*request) (any, error) {
	var stats balloon.Stats
	err := s.useBalloon(func(b *balloon.Device) error {
		stats = b.Stats()
		return nil
	})
	return stats, err
}

func (s *Server) patchStatistics(r *request) (any, error) {
	var u StatisticsUpdate
	if err := r.read(&u); err != nil {
		return nil, err
	}
	return nil, s.useBalloon(func(b *balloon.Device) error {
		if u.StatsInterval > maxInterval {
			return fmt.Errorf("stats_polling_interval_s %d: want at most %d", u.StatsInterval, maxInterval)
		}
		return b.SetStatsInterval(time.Duration(u.StatsInterval) * time.Second)
	})
}

// patchDrive has a disk take over the size that its file has now, or other limits.
func (s *Server) patchDrive(r *request) (any, error) {
	var u DriveUpdate
	if err := r.read(&u); err != nil {
		return nil, err
	}
	if err := r.checkID(u.ID); err != nil {
		return nil, err
	}
	limits, err := u.Limiter.change()
	if err != nil {
		return nil, fmt.Errorf("rate_limiter: %w", err)
	}
	if u.Path != "" || u.Limiter == nil {
		if err := s.resize(u); err != nil {
			return nil, err
		}
	}
	if u.Limiter == nil {
		return nil, nil
	}
	return nil, s.vm.LimitDrive(u.ID, limits)
}

func (s *Server) resize(u DriveUpdate) error {
	return s.vm.Use(func(m *machine.Machine) error {
		drives := s.vm.Config().Drives
		at := slices.IndexFunc(drives, func(d vmm.Drive) bool { return d.ID == u.ID })
		switch {
		case at < 0 || at >= len(m.Disks()):
			return fmt.Errorf("there is no drive %q", u.ID)
		case u.Path != "" && filepath.Clean(u.Path) != filepath.Clean(drives[at].Path):
			return fmt.Errorf("path_on_host: the drive of a running guest keeps its file, %s: enlarge that, or write the new content there", drives[at].Path)
		}
		return m.Disks()[at].Resize()
	})
}

// patchNet gives a network card other limits.
func (s *Server) patchNet(r *request) (any, error) {
	var u NetUpdate
	if err := r.read(&u); err != nil {
		return nil, err
	}
	if err := r.checkID(u.ID); err != nil {
		return nil, err
	}
	receive, err := u.Receive.change()
	if err != nil {
		return nil, fmt.Errorf("rx_rate_limiter: %w", err)
	}
	send, err := u.Send.change()
	if err != nil {
		return nil, fmt.Errorf("tx_rate_limiter: %w", err)
	}
	return nil, s.vm.LimitNet(u.ID, receive, send)
}

func (s *Server) createSnapshot(r *request) (any, error) {
	var c SnapshotCreate
	if err := r.read(&c); err != nil {
		return nil, err
	}
	if !slices.Contains([]string{"", "Full", "Diff"}, c.Type) {
		return nil, fmt.Errorf("snapshot_type %q: want Full or Diff", c.Type)
	}
	if c.Base != "" && c.Type != "Diff" {
		return nil, errors.New(`base_path is for "snapshot_type": "Diff"`)
	}
	report, err := s.vm.Snapshot(r.Context(), vmm.SnapshotRequest{
		Path: c.Path, Memory: c.Memory, Diff: c.Type == "Diff", Base: c.Base,
		Live: c.Live, WithDisks: c.WithDisks, Track: c.Track, Stop: c.Stop,
	})
	if err != nil || !c.Report {
		return nil, within("Create snapshot", err)
	}
	return report, nil
}

func (s *Server) loadSnapshot(r *request) (any, error) {
	var l SnapshotLoad
	if err := r.read(&l); err != nil {
		return nil, err
	}
	request, err := l.request()
	if err != nil {
		return nil, err
	}
	return nil, within("Load snapshot", s.vm.Load(r.Context(), request))
}

func (l *SnapshotLoad) request() (vmm.LoadRequest, error) {
	r := vmm.LoadRequest{
		Path: l.Path, Memory: l.Memory, Resume: l.Resume,
		TrackDirty: l.TrackDirty || l.Diff, ClockRealtime: l.ClockRealtime,
	}
	if l.Backend != nil {
		if l.Memory != "" {
			return r, fault("too many fields: either `mem_backend` or `mem_file_path` exclusively is required")
		}
		if l.Backend.Type != "File" && l.Backend.Type != "Uffd" {
			return r, fmt.Errorf("backend_type %q: want File or Uffd", l.Backend.Type)
		}
		r.Memory, r.Uffd = l.Backend.Path, l.Backend.Type == "Uffd"
	}
	for _, n := range l.Nets {
		if r.Taps == nil {
			r.Taps = make(map[string]string)
		}
		r.Taps[n.ID] = n.HostDev
	}
	for _, d := range l.Drives {
		if r.Disks == nil {
			r.Disks = make(map[string]string)
		}
		r.Disks[d.ID] = d.Path
	}
	if l.Vsock != nil {
		r.Vsock = l.Vsock.Path
	}
	return r, nil
}
