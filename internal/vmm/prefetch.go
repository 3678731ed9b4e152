package vmm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/internal/durable"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/snapshot"
)

// recordAfter is how long a guest runs before it is noted what memory it uses, where
// LoadRequest.Prefetch finds nothing.
const recordAfter = 10 * time.Second

// usage is what memory a restored guest uses: what is known of it from another time, and
// where it is to be noted. A nil usage is of a guest of which nobody wants to know.
type usage struct {
	known []memory.Touched
	// manifest is the snapshot's, and file is where it is noted after a time, or when
	// the guest ends; empty for nowhere.
	manifest *snapshot.Manifest
	file     string
	after    time.Duration
	once     sync.Once
}

// usage is what a request wants of a snapshot's working set. What is wrong with that is
// no reason not to restore the guest.
func (v *VM) usage(s *snapshot.Snapshot, r LoadRequest) *usage {
	u := &usage{manifest: s.Manifest(), after: r.Record}
	if r.Prefetch && r.Record == 0 {
		var err error
		if u.known, err = s.WorkingSet(); errors.Is(err, fs.ErrNotExist) {
			u.after = recordAfter
		} else if err != nil {
			v.warn(fmt.Errorf("snapshot %s: nothing is prefetched: %w", s.Dir(), err))
		}
	}
	if u.after > 0 {
		u.file = filepath.Join(s.Dir(), snapshot.WorkingSetFile)
	}
	if u.known == nil && u.file == "" {
		return nil
	}
	return u
}

// follow prefetches what the guest is known to use, and notes what it uses. It runs
// beside the guest, and returns before its end.
func (v *VM) follow(s *session) {
	u := s.usage
	if len(u.known) > 0 {
		err := v.useSession(func(now *session) error {
			if now != s {
				return nil
			}
			return s.m.Memory().Prefetch(u.known, func() bool { return s.ctx.Err() == nil })
		})
		if err != nil && s.ctx.Err() == nil {
			v.warn(err) // the guest gets its pages when it touches them
		}
	}
	if u.file == "" {
		return
	}
	select {
	case <-s.entered:
	case <-s.ctx.Done():
		return
	}
	select {
	case <-time.After(u.after):
	case <-s.ctx.Done():
		return // it is noted at the end
	}
	_ = v.useSession(func(now *session) error {
		if now == s {
			v.record(s)
		}
		return nil
	})
}

// record notes once what memory the guest has used. The machine is not closed meanwhile.
func (v *VM) record(s *session) {
	if s.usage == nil || s.usage.file == "" {
		return
	}
	s.usage.once.Do(func() {
		if err := s.usage.write(s.m); err != nil {
			v.warn(fmt.Errorf("note what memory the guest uses: %w", err))
		}
	})
}

func (u *usage) write(m *machine.Machine) error {
	runs, err := m.Memory().Touched()
	if err != nil {
		return err
	}
	content, err := snapshot.EncodeWorkingSet(u.manifest, runs)
	if err != nil {
		return err
	}
	return durable.Replace(u.file, 0o600, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
}
