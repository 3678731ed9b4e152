package vmm

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/migrate/snapshot"
)

// TestClockRealtime restores a guest with and without the time since its snapshot.
func TestClockRealtime(t *testing.T) {
	// KVM and the wall clock tell nearly the same time.
	const slack = time.Millisecond
	dir := filepath.Join(t.TempDir(), "snapshot")
	f := newVM(t, checker(t), nil)
	f.must(f.Start())
	f.runs()
	f.must(f.Pause())
	f.snapshot(SnapshotRequest{Path: dir})
	s, err := snapshot.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var saved machine.State
	f.must(decode(s, sectionMachine, &saved))
	began := time.Now()
	passed := func() time.Duration { return time.Since(time.Unix(0, int64(saved.Clock.Realtime))) }
	clock := func(realtime bool) time.Duration {
		g := restored(t, LoadRequest{Path: dir, ClockRealtime: realtime})
		var now *machine.State
		g.must(g.Use(func(m *machine.Machine) (err error) {
			now, err = m.Save()
			return err
		}))
		return time.Duration(now.Clock.Clock - saved.Clock.Clock)
	}
	before := passed()
	if got := clock(true); got < before-slack || got > passed()+slack {
		t.Errorf("the clock has moved on by %v, want %v to %v", got, before, passed())
	}
	// It stood still, for at least as long as the first restore took.
	stood := time.Since(began)
	if got := clock(false); got < 0 || got > passed()-stood+slack {
		t.Errorf("the clock has moved on by %v of %v, want %v less", got, passed(), stood)
	}
}
