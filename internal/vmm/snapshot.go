package vmm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/migrate"
	"github.com/godwit-vmm/godwit/migrate/snapshot"
)

// MemoryFile is the file in the folder of a snapshot that has the guest's memory.
const MemoryFile = "memory"

// SnapshotRequest says what snapshot to take.
type SnapshotRequest struct {
	// Path is the folder of the snapshot, which must not be there yet.
	Path string
	// Memory is empty, or the path of MemoryFile in that folder.
	Memory string
	// Diff takes only what has changed since the snapshot in the folder Base,
	// or since the last one if that is empty.
	Diff bool
	Base string
	// Live takes the snapshot of a guest that runs, which pauses for a moment
	// only. Without it the guest has to be paused.
	Live bool
	// WithDisks copies the disks into the folder.
	WithDisks bool
	// Track goes on logging the guest's writes, so that the next snapshot can be
	// a diff. A diff does so anyway.
	Track bool
	// Stop ends the guest with the snapshot: nothing happens after it.
	Stop bool
}

// LoadRequest says what snapshot to go on with.
type LoadRequest struct {
	// Path is the folder of the snapshot. Opened, if set, opens it, or has done so;
	// Load closes it.
	Path   string
	Opened func() (*snapshot.Chain, error)
	// Memory is empty, or the path of MemoryFile in that folder. Uffd has
	// another process serve the guest's memory, by the socket at Memory.
	Memory string
	Uffd   bool
	// TrackDirty is Config.TrackDirty.
	TrackDirty bool
	// Resume lets the guest run; else it is paused.
	Resume bool
	// Taps are names of tap interfaces by the ID of the network card that is
	// to have it instead of the saved one.
	Taps map[string]string
	// Disks are paths of disks by their ID in the snapshot, instead of the saved
	// ones. One that is not there is made from the snapshot's copy.
	Disks map[string]string
	// Overlays is a folder in which each disk that the guest may write to gets an
	// overlay, named after the guest, so that the disk itself stays as it is;
	// Ephemeral gives it one that is gone with the guest.
	Overlays  string
	Ephemeral bool
	// NewMACs gives the network cards other addresses than the saved ones. The
	// guest knows only the old ones; MACChanged is told of each.
	NewMACs    bool
	MACChanged func(old, new net.MAC)
	// Vsock is the path of the vsock device's socket, empty for that of
	// Options.Identify.
	Vsock string
	// Prefetch maps the memory that the guest used when it was restored before, as soon
	// as it runs. If that is not known it is noted in the snapshot for the next time.
	Prefetch bool
	// Record has noted, in the snapshot, what memory the guest has used when it has run
	// for this time, or when it ends earlier; 0 notes nothing. Nothing is prefetched.
	Record time.Duration
	// ClockRealtime moves the guest's clock on by the time since the snapshot: see
	// machine.State.AdvanceClock.
	ClockRealtime bool
}

// checkPaths checks that a request which names two paths, as Firecracker's do, means
// one folder.
func checkPaths(path, memory string) error {
	if path == "" {
		return errors.New("the path of the snapshot is missing")
	}
	if want := filepath.Join(path, MemoryFile); memory != "" && filepath.Clean(memory) != want {
		return fmt.Errorf("memory in %s: a snapshot is one folder, with its memory in %s: leave the path out or give that", memory, want)
	}
	return nil
}

// Snapshot takes a snapshot of the guest. The guest is as before after it, whether
// that succeeds or fails. It breaks off when ctx ends or the guest is killed.
func (v *VM) Snapshot(ctx context.Context, r SnapshotRequest) (report migrate.Report, err error) {
	if err := checkPaths(r.Path, r.Memory); err != nil {
		return report, err
	}
	v.op.Lock()
	defer v.op.Unlock()
	ctx, stop := v.untilKilled(ctx)
	defer stop()
	err = v.useSession(func(s *session) error {
		still := v.Phase() == Paused
		if !r.Live && !still {
			return ErrNotPaused
		}
		if !still {
			select {
			case <-s.entered:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		defer v.countSnapshot(time.Now(), r, still, &report, &err)
		report, err = v.take(ctx, s, r, still)
		return err
	})
	if err != nil {
		return report, err
	}
	v.tell(Event{Kind: EventSnapshot, Path: r.Path})
	if r.Stop {
		v.Kill(ErrStopped)
	}
	return report, nil
}

// ErrStopped is what Kill is given when the guest ends with its snapshot.
var ErrStopped = errors.New("stopped with a snapshot")

// Load starts the guest with what it was when a snapshot was taken. The VM must not
// have been configured.
func (v *VM) Load(ctx context.Context, r LoadRequest) error {
	memory := r.Memory
	if r.Uffd { // that is a socket
		memory = ""
	}
	if err := checkPaths(r.Path, memory); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	v.op.Lock()
	defer v.op.Unlock()
	return v.starts(func() error {
		v.mu.Lock()
		configured := v.configured
		v.mu.Unlock()
		if configured {
			return ErrConfigured
		}
		s, err := v.restore(r)
		if err != nil {
			return err
		}
		phase := Paused
		if r.Resume {
			phase = Running
		}
		v.tell(Event{Kind: EventRestored, Path: r.Path})
		if err := v.launch(s, phase); err != nil {
			return err
		}
		if s.usage != nil {
			go v.follow(s)
		}
		return nil
	})
}

// untilKilled is ctx that also ends when the guest is killed.
func (v *VM) untilKilled(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(v.ctx, func() { cancel(context.Cause(v.ctx)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}
