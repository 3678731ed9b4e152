package vmm

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/snapshot"
)

// workingSet is what is noted in a snapshot.
func workingSet(t *testing.T, path string) []memory.Touched {
	t.Helper()
	s, err := snapshot.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	runs, err := s.WorkingSet()
	if err != nil {
		t.Fatal(err)
	}
	return runs
}

func bytesWritten(runs []memory.Touched) (n uint64) {
	for _, r := range runs {
		if r.Written {
			n += r.Length
		}
	}
	return n
}

// TestPrefetch restores a guest that writes to 16 MiB, which is noted at its end, and
// another one that has them at once.
func TestPrefetch(t *testing.T) {
	const used = 16 << 20
	path := checkerSnapshot(t, func(*Config) error { return nil })
	f := restored(t, LoadRequest{Path: path, Resume: true, Prefetch: true})
	f.sound()
	f.Kill(nil)
	<-f.Done()
	runs := workingSet(t, path)
	if n := bytesWritten(runs); n < used || n > used+(1<<20) {
		t.Errorf("%d bytes are noted as written, want %d and little more", n, used)
	}
	if err := snapshot.Verify(t.Context(), path, nil); err != nil {
		t.Error(err)
	}

	// It is paused: what is there was prefetched.
	g := restored(t, LoadRequest{Path: path, Prefetch: true})
	for {
		var now []memory.Touched
		g.must(g.Use(func(m *machine.Machine) (err error) {
			now, err = m.Memory().Touched()
			return err
		}))
		if bytesWritten(now) >= bytesWritten(runs) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	g.must(g.Resume())
	g.sound()
}

// TestRecord notes what the guest uses while it runs.
func TestRecord(t *testing.T) {
	path := checkerSnapshot(t, func(*Config) error { return nil })
	f := restored(t, LoadRequest{Path: path, Resume: true, Record: time.Millisecond})
	file := filepath.Join(path, snapshot.WorkingSetFile)
	for {
		if _, err := os.Stat(file); err == nil {
			break
		}
		f.runs()
	}
	workingSet(t, path)
	f.sound()
}

// TestPrefetchDamaged has a working set that is damaged: the guest runs without it.
func TestPrefetchDamaged(t *testing.T) {
	path := checkerSnapshot(t, func(*Config) error { return nil })
	if err := os.WriteFile(filepath.Join(path, snapshot.WorkingSetFile), []byte("godwitWS"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := restored(t, LoadRequest{Path: path, Resume: true, Prefetch: true})
	f.hears(EventTrouble, 1)
	f.sound()
}
