package vmm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/godwit-vmm/godwit/devices/virtio/console"
	"github.com/godwit-vmm/godwit/internal/durable"
	"github.com/godwit-vmm/godwit/internal/netflag"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/snapshot"
	"github.com/godwit-vmm/godwit/migrate/statejson"
	"golang.org/x/sys/unix"
)

// savedConfig is the section sectionConfig.
type savedConfig struct {
	Config
	// HVC says that the guest has a virtio console.
	HVC bool
}

// restore builds the machine of a snapshot, and takes over its configuration. The
// caller is within starts.
func (v *VM) restore(r LoadRequest) (*session, error) {
	open := r.Opened
	if open == nil {
		open = func() (*snapshot.Chain, error) { return snapshot.OpenChain(r.Path) }
	}
	chain, err := open()
	if err != nil {
		return nil, err
	}
	defer chain.Close()
	newest := chain.Newest()
	// The state is most of what there is to decode: beside the making of the VM.
	state := sync.OnceValues(func() (*machine.State, error) {
		s := new(machine.State)
		err := decode(newest, sectionMachine, s)
		if r.ClockRealtime {
			s.AdvanceClock()
		}
		return s, err
	})
	decoded := make(chan struct{})
	go func() {
		defer close(decoded)
		_, _ = state() // who needs it gets the error
	}()
	defer func() { <-decoded }() // the chain is closed
	var saved savedConfig
	if err := decode(newest, sectionConfig, &saved); err != nil {
		return nil, err
	}
	v.trace("snapshot")
	c := saved.Config
	if size := newest.Manifest().Memory.Size; c.Memory != size {
		return nil, fmt.Errorf("snapshot %s: its guest has %d bytes of memory, and %d are saved", r.Path, c.Memory, size)
	}
	if err := trust(&c, r); err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", r.Path, err)
	}
	if err := v.relocate(&c, newest, r); err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", r.Path, err)
	}
	if len(c.Nets) > 0 {
		s, err := state()
		if err == nil {
			err = v.settleMACs(&c, s, r)
		}
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", r.Path, err)
		}
	}
	switch {
	case !saved.HVC:
		v.o.HVC = nil
	case v.o.HVC == nil:
		v.o.HVC = &console.Config{}
	}
	before := v.Config()
	v.set(func() { v.config = c })
	m := v.machineConfig()
	m.Saved = &machine.Saved{State: state}
	for _, e := range chain.Extents() {
		m.Saved.Memory = append(m.Saved.Memory, memory.Extent{Offset: uint64(e.Offset), Length: uint64(e.Length), File: e.File})
	}
	switch {
	case r.Uffd:
		m.Saved.Serve = v.serveByHandler(r.Memory)
	case c.HugePages:
		m.Saved.Serve = v.serveSaved(m.Saved.Memory)
	}
	built, err := machine.New(v.o.System, m)
	if err != nil {
		v.set(func() { v.config = before })
		return nil, fmt.Errorf("snapshot %s: %w", r.Path, err)
	}
	restored := newSession(built)
	if m.Saved.Serve == nil {
		restored.usage = v.usage(newest, r)
	}
	if !r.TrackDirty {
		return restored, nil
	}
	if restored.tracked, err = track(built, newest); err != nil {
		v.set(func() { v.config = before })
		return nil, errors.Join(err, built.Close())
	}
	return restored, nil
}

// track begins to log what a restored machine writes, which does not run yet, for a diff
// on the snapshot that it is from.
func track(m *machine.Machine, from *snapshot.Snapshot) (*tracked, error) {
	dir, err := filepath.Abs(from.Dir())
	if err != nil {
		return nil, err
	}
	t := &tracked{id: from.Manifest().ID, dir: dir, changed: dirtyBitmap(m)}
	// What the VMM has written already, the generation ID, is a change; the log
	// begins with everything set, which is none.
	m.Memory().Dirty().Drain(t.changed)
	if err := m.StartDirtyLog(); err != nil {
		return nil, err
	}
	return t, m.FetchDirty(dirtyBitmap(m))
}

// dirtyBitmap is a bitmap with a bit for each page of a machine.
func dirtyBitmap(m *machine.Machine) []uint64 {
	return make([]uint64, (m.Memory().Size()/memory.PageSize+63)/64)
}

// decode decodes a section of the state.
func decode(s *snapshot.Snapshot, section string, into any) error {
	text, ok := s.Section(section)
	if !ok {
		return fmt.Errorf("snapshot %s: its state has no section %q: was it made by this program?", s.Dir(), section)
	}
	if err := statejson.Unmarshal(text, into); err != nil {
		return fmt.Errorf("snapshot %s: section %q: %w", s.Dir(), section, err)
	}
	return nil
}

// trust refuses to let a snapshot that another user has made say which files and
// network interfaces of this host its guest gets.
func trust(c *Config, r LoadRequest) error {
	var st unix.Stat_t
	if err := unix.Stat(r.Path, &st); err != nil {
		return err
	}
	if int(st.Uid) == os.Geteuid() {
		return nil
	}
	for i, d := range c.Drives {
		// With an overlay there are two files to choose.
		if id := driveID(i, d); r.Disks[id] == "" || d.Overlay != "" {
			return fmt.Errorf("it is of another user (%d), who cannot choose what disk %s is: say so with --disk %s=PATH", st.Uid, id, id)
		}
	}
	for i, n := range c.Nets {
		// Nor what ports of this host lead to the guest.
		c.Nets[i].User.Forwards = nil
		if _, ok := r.Taps[n.ID]; n.Kind == netflag.Tap && !ok {
			return fmt.Errorf("it is of another user (%d), who cannot choose what network card %s is connected to: say so with --tap %s=NAME", st.Uid, n.ID, n.ID)
		}
	}
	return nil
}

// relocate changes what the saved guest had of its host to what it is to have here.
func (v *VM) relocate(c *Config, s *snapshot.Snapshot, r LoadRequest) error {
	c.TrackDirty = r.TrackDirty
	c.Vsock = nil
	if r.Vsock != "" {
		c.Vsock = &Vsock{Path: r.Vsock}
	}
	for i := range c.Nets {
		if tap, ok := r.Taps[c.Nets[i].ID]; ok {
			c.Nets[i].Tap.Name, c.Nets[i].Tap.Bridge = tap, ""
		}
	}
	known := make(map[string]bool)
	for i := range c.Drives {
		d := &c.Drives[i]
		id := driveID(i, *d)
		known[id] = true
		for _, saved := range s.Manifest().Disks {
			if saved.ID != id {
				continue
			}
			err := v.findDisk(d, saved, s.Dir(), r.Disks[id], r.Ephemeral || r.Overlays != "")
			if err == nil {
				err = v.overlay(d, id, r)
			}
			if err != nil {
				return fmt.Errorf("disk %s: %w", id, err)
			}
		}
	}
	for id := range r.Disks {
		if !known[id] {
			return fmt.Errorf("the snapshot has no disk %q", id)
		}
	}
	return nil
}

// findDisk decides what file a disk is: the one that the user gives, which is made
// from the copy in the snapshot if it is not there; else that copy, if it will only be
// read; else the one that it was, if that is as the snapshot has left it.
func (v *VM) findDisk(d *Drive, saved snapshot.Disk, dir, path string, overlaid bool) error {
	file := &d.Path
	if saved.Format == formatOverlay {
		file = &d.Overlay
	}
	if path != "" {
		*file = path
		_, err := os.Stat(path)
		if saved.File != "" && errors.Is(err, fs.ErrNotExist) {
			return durable.Replace(path, 0o600, func(to *os.File) error {
				return copyDisk(to, filepath.Join(dir, saved.File))
			})
		}
		return err
	}
	if overlaid && saved.Format == formatOverlay {
		return errors.New("it has an overlay already, and an overlay of that cannot be: give another with --disk")
	}
	if saved.File != "" && overlaid {
		d.Path = filepath.Join(dir, saved.File)
		return nil
	}
	if saved.File != "" {
		return fmt.Errorf("a copy of it is in the snapshot: say where the guest's own is to be, with --disk %s=PATH, or give --overlay FOLDER", saved.ID)
	}
	identity, _, err := identify(saved.Path)
	if err != nil {
		return fmt.Errorf("%w: give another path with --disk %s=PATH", err, saved.ID)
	}
	if identity != saved.Identity {
		return fmt.Errorf("%s has changed since the snapshot (%s; it was %s): the guest would destroy its file system: give a copy of that time with --disk %s=PATH",
			saved.Path, identity, saved.Identity, saved.ID)
	}
	*file = saved.Path
	return nil
}
