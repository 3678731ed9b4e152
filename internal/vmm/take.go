package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/godwit-vmm/godwit/internal/version"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/migrate"
	"github.com/godwit-vmm/godwit/migrate/snapshot"
	"github.com/godwit-vmm/godwit/vcpu"
	"golang.org/x/sys/unix"
)

// The sections of a snapshot's state.
const (
	// sectionMachine is a machine.State.
	sectionMachine = "machine"
	// sectionConfig is a Config.
	sectionConfig = "config"
)

// tracked is what is known of the guest's writes since a snapshot.
type tracked struct {
	// id and dir are the snapshot's.
	id, dir string
	// changed are pages that were written since and have been taken out of the
	// dirty log, for a snapshot that failed.
	changed []uint64
}

// watched is a machine whose dirty log is kept, too, for the next attempt.
type watched struct {
	*machine.Machine
	changed []uint64
	fetched []uint64
	// still is set for a machine that is paused already, and stays so.
	still bool
}

// FetchDirty is that of migrate.Source.
func (w *watched) FetchDirty(dst []uint64) error {
	clear(w.fetched)
	if err := w.Machine.FetchDirty(w.fetched); err != nil {
		return err
	}
	for i, word := range w.fetched {
		dst[i] |= word
		w.changed[i] |= word
	}
	return nil
}

// Pause is that of migrate.Source.
func (w *watched) Pause() {
	if !w.still {
		w.Machine.Pause()
	}
}

// Resume is that of migrate.Source.
func (w *watched) Resume() {
	if !w.still {
		w.Machine.Resume()
	}
}

// take writes the snapshot. The guest is running, or paused if still is set.
func (v *VM) take(ctx context.Context, s *session, r SnapshotRequest, still bool) (report migrate.Report, err error) {
	src := &watched{Machine: s.m, still: still, changed: dirtyBitmap(s.m), fetched: dirtyBitmap(s.m)}
	o := migrate.Options{Limits: migrate.DefaultLimits, Stay: r.Stop}
	to := snapshot.Options{Memory: s.m.Memory().Ranges()}
	if r.Diff {
		if err := v.checkBase(s.tracked, r.Base); err != nil {
			return report, err
		}
		copy(src.changed, s.tracked.changed)
		o.Changed = s.tracked.changed
		to.Base, to.BaseID = s.tracked.dir, s.tracked.id
	}
	disks, err := v.describeDisks()
	if err != nil {
		return report, err
	}
	w, err := snapshot.Create(r.Path, to)
	if err != nil {
		return report, err
	}
	defer func() {
		err = errors.Join(err, w.Abort())
		if err != nil {
			v.untake(s, src, r)
		}
	}()
	var state *machine.State
	report, err = migrate.Copy(ctx, src, w, o, func() (err error) {
		if s.m.Over() {
			return ErrEnded
		}
		if state, err = s.m.Save(); err != nil {
			return err
		}
		// The images are what the guest wrote so far, and not later.
		return v.saveDisks(w, disks, r.WithDisks)
	})
	if err != nil {
		return report, err
	}
	if err := v.commit(s.m, w, state, disks); err != nil {
		if r.Stop && !still {
			s.m.Resume()
		}
		return report, err
	}
	return report, v.keepTracking(s, w.ID(), r)
}

// commit writes the rest of the snapshot to the disk.
func (v *VM) commit(m *machine.Machine, w *snapshot.Writer, state *machine.State, disks []snapshot.Disk) error {
	// A snapshot is of no use without the disks that go with it.
	for _, d := range m.Disks() {
		if err := d.Sync(); err != nil {
			return err
		}
	}
	c := v.Config()
	machineText, err := json.Marshal(state)
	if err != nil {
		return err
	}
	configText, err := json.Marshal(savedConfig{Config: c, HVC: v.o.HVC != nil})
	if err != nil {
		return err
	}
	manifest := snapshot.Manifest{
		Created: time.Now().UTC(), Godwit: version.Version, Name: v.Name(), CPUs: c.CPUs,
		CPUFeatures: vcpu.Features(state.CPUs[0].CPUID), Disks: disks,
	}
	for i, d := range state.Virtio {
		manifest.Devices = append(manifest.Devices, snapshot.Device{ID: strconv.Itoa(i), Type: d.Name, Section: sectionMachine})
	}
	return w.Commit(manifest, []snapshot.Section{{Name: sectionConfig, Data: configText}, {Name: sectionMachine, Data: machineText}})
}

// checkBase checks that the guest's writes are known since the snapshot that a diff is
// to build upon.
func (v *VM) checkBase(t *tracked, base string) error {
	if t == nil {
		return errors.New("the guest's writes were not tracked since a snapshot: take a full one first, with tracking (--track)")
	}
	if base == "" {
		return nil
	}
	abs, err := filepath.Abs(base)
	if err != nil {
		return err
	}
	if abs != t.dir {
		return fmt.Errorf("the guest's writes are tracked since the snapshot %s, not since %s: base the diff on that one", t.dir, base)
	}
	return nil
}

// keepTracking goes on with the dirty log after a snapshot if the next one may be a
// diff.
func (v *VM) keepTracking(s *session, id string, r SnapshotRequest) error {
	if !r.Track && !r.Diff && !v.Config().TrackDirty {
		s.tracked = nil
		return s.m.StopDirtyLog()
	}
	dir, err := filepath.Abs(r.Path)
	if err != nil {
		return err
	}
	s.tracked = &tracked{id: id, dir: dir, changed: dirtyBitmap(s.m)}
	return nil
}

// untake sees to the dirty log after a snapshot that failed: what was fetched from it
// is remembered for the next diff, or the log is ended.
func (v *VM) untake(s *session, src *watched, r SnapshotRequest) {
	if s.tracked != nil && r.Diff {
		s.tracked.changed = src.changed
		return
	}
	// The guest's writes since the snapshot before are not known any more.
	s.tracked = nil
	// It would only cost the guest speed; there is a next attempt.
	_ = s.m.StopDirtyLog()
}

// The formats of a disk in a manifest.
const (
	formatRaw     = "raw"
	formatOverlay = "overlay" // the base is in the configuration
)

// describeDisks says what disks the guest has.
func (v *VM) describeDisks() ([]snapshot.Disk, error) {
	var disks []snapshot.Disk
	for i, d := range v.Config().Drives {
		s := snapshot.Disk{ID: driveID(i, d), Path: d.Path, Format: formatRaw, ReadOnly: d.ReadOnly}
		if d.Scratch != nil {
			return nil, fmt.Errorf("what the guest has written to disk %s is gone when the guest is: it cannot be part of a snapshot", s.ID)
		}
		if d.Overlay != "" {
			s.Path, s.Format = d.Overlay, formatOverlay
		}
		var err error
		if s.Path, err = filepath.Abs(s.Path); err != nil {
			return nil, err
		}
		disks = append(disks, s)
	}
	return disks, nil
}

// driveID is what a drive is called in snapshots.
func driveID(i int, d Drive) string {
	if d.ID != "" {
		return d.ID
	}
	return strconv.Itoa(i)
}

// saveDisks notes what the disks are at the moment, and copies them if need be. The
// guest is paused.
func (v *VM) saveDisks(w *snapshot.Writer, disks []snapshot.Disk, copies bool) error {
	for i := range disks {
		d := &disks[i]
		var err error
		if d.Identity, d.Size, err = identify(d.Path); err != nil {
			return fmt.Errorf("disk %s: %w", d.ID, err)
		}
		if !copies || d.ReadOnly {
			continue
		}
		d.File = "disk-" + strconv.Itoa(i)
		to, err := w.CreateFile(d.File)
		if err == nil {
			err = copyDisk(to, d.Path)
		}
		if err != nil {
			return fmt.Errorf("copy disk %s: %w", d.ID, err)
		}
	}
	return nil
}

// identify tells a file from another one, and from itself with other contents.
func identify(path string) (identity string, size uint64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return fmt.Sprintf("block device %#x", st.Rdev), 0, nil
	}
	return fmt.Sprintf("inode %d of %#x, changed %d.%09d", st.Ino, st.Dev, st.Mtim.Sec, st.Mtim.Nsec), uint64(st.Size), nil
}

// copyDisk copies a disk. File systems that can, share the blocks, which takes no
// time; else the holes are left out.
func copyDisk(to *os.File, path string) error {
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(snapshot.CopyFile(to, from), from.Close())
}
