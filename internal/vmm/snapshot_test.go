package vmm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/migrate/snapshot"
)

// checker is a guest that writes to 16 MiB of its memory for ever, and looks whether
// it finds there what it wrote before.
func checker(t *testing.T) string {
	return kernel(t)(micro.Check(16<<20, 32<<20, 4096, micro.Forever, nil))
}

// result is what a micro-guest has found out so far.
func (f *fixture) result() micro.Result {
	f.t.Helper()
	var r micro.Result
	f.must(f.Use(func(m *machine.Machine) error {
		p, err := m.Memory().View(micro.ResultStart, micro.ResultSize)
		if err == nil {
			r, err = micro.ReadResult(p)
		}
		return err
	}))
	return r
}

// sound lets the guest go through its memory a few times.
func (f *fixture) sound() {
	f.t.Helper()
	for range 3 {
		f.runs()
	}
	if r := f.result(); r.Mismatches != 0 {
		f.t.Fatalf("after %d passes %d words were not what the guest had written, the last one at %#x", r.Count, r.Mismatches, r.Detail)
	}
}

func (f *fixture) snapshot(r SnapshotRequest) {
	f.t.Helper()
	report, err := f.Snapshot(f.t.Context(), r)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := snapshot.Verify(f.t.Context(), r.Path, nil); err != nil {
		f.t.Fatal(err)
	}
	f.t.Logf("snapshot %s: %+v", filepath.Base(r.Path), report)
}

// restored is a guest from a snapshot.
func restored(t *testing.T, r LoadRequest) *fixture {
	t.Helper()
	f := newVM(t, "", nil)
	f.must(f.Load(t.Context(), r))
	return f
}

func TestSnapshot(t *testing.T) {
	dir := t.TempDir()
	f := newVM(t, checker(t), nil)
	f.must(f.Configure(func(c *Config) error {
		c.CPUs, c.Memory = 2, 64<<20
		c.Balloon = &balloon.Config{DeflateOnOOM: true}
		return nil
	}))
	f.must(f.Start())
	f.runs()
	if _, err := f.Snapshot(t.Context(), SnapshotRequest{Path: filepath.Join(dir, "no")}); !errors.Is(err, ErrNotPaused) {
		t.Errorf("a snapshot of a running guest that is not live: %v", err)
	}
	live, paused := filepath.Join(dir, "live"), filepath.Join(dir, "paused")
	f.snapshot(SnapshotRequest{Path: live, Live: true})
	if f.Phase() != Running {
		t.Fatalf("the guest is %v after a live snapshot", f.Phase())
	}
	f.sound()
	f.must(f.Pause())
	f.snapshot(SnapshotRequest{Path: paused})
	if f.Phase() != Paused {
		t.Fatalf("the guest is %v after a snapshot, it was paused", f.Phase())
	}
	at := f.rounds()
	f.must(f.Resume())
	f.sound()
	f.Kill(nil)
	<-f.Done()

	for _, path := range []string{live, paused} {
		g := restored(t, LoadRequest{Path: path})
		if g.Phase() != Paused || g.Config().CPUs != 2 || g.Config().Balloon == nil {
			t.Fatalf("restored: %v, %+v", g.Phase(), g.Config())
		}
		if path == paused && g.rounds() != at {
			t.Errorf("the guest restored is in pass %d, it was in %d", g.rounds(), at)
		}
		g.must(g.Resume())
		g.sound()
		// What it does is its own affair, and not the next one's.
		again := restored(t, LoadRequest{Path: path, Resume: true})
		again.sound()
		if err := snapshot.Verify(t.Context(), path, nil); err != nil {
			t.Error(err)
		}
	}
}

// TestDiffs restores each link of a chain of snapshots, and what they are merged to.
func TestDiffs(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	f := newVM(t, checker(t), nil)
	f.must(f.Start())
	f.runs()
	if _, err := f.Snapshot(t.Context(), SnapshotRequest{Path: path("diff"), Live: true, Diff: true}); err == nil {
		t.Error("a diff without a base was taken")
	}
	f.snapshot(SnapshotRequest{Path: path("base"), Live: true, Track: true})
	if _, err := f.Snapshot(t.Context(), SnapshotRequest{Path: path("diff"), Live: true, Diff: true, Base: path("other")}); err == nil {
		t.Error("a diff on another base was taken")
	}
	links := []string{path("base")}
	for _, name := range []string{"one", "two", "three"} {
		f.sound()
		f.snapshot(SnapshotRequest{Path: path(name), Live: true, Diff: true, Base: links[len(links)-1]})
		links = append(links, path(name))
	}
	f.Kill(nil)
	<-f.Done()
	// A guest that is restored with tracking goes on with the chain.
	h := restored(t, LoadRequest{Path: path("three"), Resume: true, TrackDirty: true})
	h.sound()
	h.snapshot(SnapshotRequest{Path: path("four"), Live: true, Diff: true, Base: path("three")})
	h.Kill(nil)
	<-h.Done()
	links = append(links, path("four"))
	if err := snapshot.Merge(t.Context(), path("four"), path("merged"), nil); err != nil {
		t.Fatal(err)
	}
	var last uint64
	for _, link := range append(links, path("merged")) {
		g := restored(t, LoadRequest{Path: link})
		if n := g.rounds(); n < last {
			t.Errorf("%s is of pass %d, the one before of %d", filepath.Base(link), n, last)
		} else {
			last = n
		}
		g.must(g.Resume())
		g.sound()
	}
}

// TestSnapshotFails: the guest runs on when a snapshot cannot be, and the next one is
// whole.
func TestSnapshotFails(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	f := newVM(t, checker(t), nil)
	f.must(f.Start())
	f.runs()
	f.snapshot(SnapshotRequest{Path: path("base"), Live: true, Track: true})
	for _, where := range []string{path("base"), path("nowhere/snapshot")} {
		if _, err := f.Snapshot(t.Context(), SnapshotRequest{Path: where, Live: true, Diff: true}); err == nil {
			t.Errorf("a snapshot in %s was taken", where)
		}
		f.sound()
	}
	f.snapshot(SnapshotRequest{Path: path("diff"), Live: true, Diff: true})
	g := restored(t, LoadRequest{Path: path("diff"), Resume: true})
	g.sound()
}

// TestSnapshotStops ends the guest with its snapshot.
func TestSnapshotStops(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	f := newVM(t, checker(t), nil)
	f.must(f.Start())
	f.runs()
	f.snapshot(SnapshotRequest{Path: path, Live: true, Stop: true})
	select {
	case <-f.Done():
	case <-time.After(time.Minute):
		t.Fatal("the guest did not end")
	}
	if !errors.Is(f.Cause(), ErrStopped) {
		t.Errorf("it ended because of %v", f.Cause())
	}
	g := restored(t, LoadRequest{Path: path, Resume: true})
	g.sound()
}

// TestSnapshotDisks: a disk has to be what it was.
func TestSnapshotDisks(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	image := path("disk.img")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newVM(t, checker(t), nil)
	f.must(f.Configure(func(c *Config) error {
		c.Drives = append(c.Drives, Drive{})
		c.Drives[0].Path = image
		return nil
	}))
	f.must(f.Start())
	f.runs()
	f.snapshot(SnapshotRequest{Path: path("plain"), Live: true})
	f.snapshot(SnapshotRequest{Path: path("whole"), Live: true, WithDisks: true})
	f.Kill(nil)
	<-f.Done()

	restored(t, LoadRequest{Path: path("plain"), Resume: true}).sound()
	fails := func(r LoadRequest, what string) {
		t.Helper()
		g := newVM(t, "", nil)
		if err := g.Load(t.Context(), r); err == nil || g.Phase() != NotStarted {
			t.Errorf("%s: %v", what, err)
		}
	}
	fails(LoadRequest{Path: path("whole")}, "nobody said where the copy of the disk goes")
	fails(LoadRequest{Path: path("plain"), Disks: map[string]string{"nosuch": image}}, "a disk that the guest has not")
	if err := os.WriteFile(image, append([]byte("changed"), make([]byte, 1<<20-7)...), 0o600); err != nil {
		t.Fatal(err)
	}
	fails(LoadRequest{Path: path("plain")}, "the disk has changed")
	if os.Geteuid() == 0 {
		const somebody = 12345
		if err := os.Chown(path("whole"), somebody, somebody); err != nil {
			t.Fatal(err)
		}
		fails(LoadRequest{Path: path("whole"), Overlays: dir}, "another user says what the disk is")
	}
	g := restored(t, LoadRequest{Path: path("whole"), Resume: true, Disks: map[string]string{"0": path("mine.img")}})
	g.sound()
	mine, err := os.ReadFile(path("mine.img"))
	if err != nil || len(mine) != 1<<20 || mine[0] != 0 {
		t.Errorf("the copy has %d bytes: %v", len(mine), err)
	}
}
