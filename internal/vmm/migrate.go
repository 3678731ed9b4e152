package vmm

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/godwit-vmm/godwit/internal/version"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/live"
	"github.com/godwit-vmm/godwit/migrate/snapshot"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// MigrateRequest says where a guest is to move, and how.
type MigrateRequest struct {
	// Addr is HOST:PORT or unix:PATH of a host that receives.
	Addr string
	// TLS is nil for plain connections.
	TLS *tls.Config
	// Connections for memory; 0 is live.DefaultConnections.
	Connections int
	Compress    stream.Compression
	// Limit bounds what memory and disks are sent with; nil does not.
	Limit *stream.Limiter
	// WithDisks has the disks move, too, that the guest can write. Otherwise they are on
	// storage that the other host shares.
	WithDisks bool
	Policy    stream.Policy
	// Journal is this host's.
	Journal *handover.Journal
	// Progress, if set, is told how the migration stands, from any goroutine.
	Progress func(live.Progress)
	// Orders are those of live.SourceOptions.
	Orders <-chan handover.Event
	// Moved, if set, is called when the guest has moved, before it ends here.
	Moved func(live.Report)
}

// ErrMigrated is what Kill is given when the guest has moved to another host.
var ErrMigrated = errors.New("moved to another host")

// ErrLeft is what Kill is given when it is not known whether the guest has moved.
var ErrLeft = errors.New("the guest was let go, and may run on another host")

// offered is what the destination has to know of the guest.
type offered struct {
	Config savedConfig
	// Machine is the state when the migration began. The destination loads it as a
	// rehearsal: what its host cannot do, it says before any memory moves.
	Machine *machine.State
	// Paused says that the guest is to be paused there, too.
	Paused bool
	// Used is how much memory the guest takes up, in bytes.
	Used  uint64
	Disks []snapshot.Disk
	// Moving are the numbers of the drives that come with the guest, rising, in the
	// order of live.Offer.Disks.
	Moving []int
}

// Migrate moves the guest to another host, while it runs or is paused. When ctx ends
// before the guest was let go, it is called off. Without an error the guest has moved, and
// ends here; with live.ErrLost that is its Cause.
func (v *VM) Migrate(ctx context.Context, r MigrateRequest) (report live.Report, err error) {
	v.op.Lock()
	defer v.op.Unlock()
	err = v.useSession(func(s *session) error {
		if v.Phase() != Paused {
			select {
			case <-s.entered:
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-v.ctx.Done():
				return ErrEnded
			}
		}
		report, err = v.move(ctx, s, r)
		return err
	})
	if err == nil {
		v.tell(Event{Kind: EventMigrated, Path: r.Addr})
		if r.Moved != nil {
			r.Moved(report)
		}
		v.Kill(ErrMigrated)
	} else if errors.Is(err, live.ErrLost) {
		v.Kill(err)
	} else if errors.Is(err, live.ErrInDoubt) {
		v.Kill(ErrLeft)
	}
	return report, err
}

// move is Migrate of a session.
func (v *VM) move(ctx context.Context, s *session, r MigrateRequest) (live.Report, error) {
	if m, missing := v.Missing(); missing {
		return live.Report{}, fmt.Errorf("%d bytes of the guest's memory are still at the host that it came from: try again when they are here", m.Bytes)
	}
	g := &moving{Machine: s.m, still: v.Phase() == Paused}
	epoch, err := r.Journal.Epoch(v.Name())
	if err != nil {
		return live.Report{}, err
	}
	// What is not removed now, is so before the next migration.
	_ = r.Journal.Prune(v.Name())
	var disks []live.Disk
	if r.WithDisks {
		disks, g.drives = v.movingDisks(s.m)
	}
	offer, err := v.offer(g)
	if err != nil {
		return live.Report{}, err
	}
	var files []live.OfferedFile
	sharesMemory := false
	if isLocal(r.Addr) && r.TLS == nil {
		if files, sharesMemory, err = passedFiles(s.m); err != nil {
			return live.Report{}, err
		}
		defer closeFiles(files)
	}
	// The log of the writes since a snapshot is the migration's now.
	s.tracked = nil
	report, err := live.Migrate(ctx, v.ctx, g, live.SourceOptions{
		Offer: live.Offer{ID: handover.NewID(), Epoch: epoch, Name: v.Name(), Godwit: version.String(), Guest: offer, Files: files, SharesMemory: sharesMemory},
		Addr:  r.Addr, TLS: r.TLS, Connections: r.Connections, Compress: r.Compress, Limit: r.Limit, Disks: disks, Policy: r.Policy,
		Journal: r.Journal, Progress: r.Progress, Orders: r.Orders, Died: s.m.Ended(),
	})
	if err == nil || errors.Is(err, live.ErrInDoubt) || errors.Is(err, live.ErrLost) {
		if len(files) > 0 {
			release(s.m)
		}
		return report, err
	}
	// It would only cost the guest speed.
	_ = s.m.StopDirtyLog()
	v.tell(Event{Kind: EventTrouble, Err: err})
	return report, err
}

// offer describes the guest, which is paused for a moment.
func (v *VM) offer(g *moving) (json.RawMessage, error) {
	o := offered{Paused: g.still, Moving: g.drives}
	var err error
	if o.Used, err = g.MemoryUsed(); err != nil {
		return nil, err
	}
	if o.Disks, err = v.describeDisks(); err != nil {
		return nil, err
	}
	if err := v.saveDisks(nil, o.Disks, false); err != nil {
		return nil, err
	}
	g.Pause()
	o.Machine, err = g.Machine.Save()
	g.Resume()
	if err != nil {
		return nil, err
	}
	o.Config = savedConfig{Config: v.Config(), HVC: v.o.HVC != nil}
	return json.Marshal(o)
}

// moving is live.Guest.
type moving struct {
	*machine.Machine
	// still is set for a guest that was paused before, and stays so.
	still bool
	// drives are the numbers of those that move with it.
	drives []int
}

// Pause is that of migrate.Source, and Resume, too.
func (g *moving) Pause() {
	if !g.still {
		g.Machine.Pause()
	}
}

// Resume lets a guest run on that was not paused before.
func (g *moving) Resume() {
	if !g.still {
		g.Machine.Resume()
	}
}

// Throttle is that of live.Guest.
func (g *moving) Throttle(percent int) {
	if !g.still {
		g.Machine.Throttle(percent)
	}
}

// movedState is the state that goes with the last pages.
type movedState struct{ Machine *machine.State }

// Save is that of live.Guest.
func (g *moving) Save() ([]byte, error) {
	if g.Over() {
		return nil, ErrEnded
	}
	for _, d := range g.Disks() {
		if err := d.Sync(); err != nil {
			return nil, err
		}
	}
	state, err := g.Machine.Save()
	if err != nil {
		return nil, err
	}
	return json.Marshal(movedState{Machine: state})
}

// TakeLocks is that of live.Guest.
func (g *moving) TakeLocks() error { return g.ActivateDisks() }

// DropLocks is that of live.Guest.
func (g *moving) DropLocks() error { return g.DeactivateDisks() }

// Destroy has nothing to do: the guest is paused, and nobody else can resume it before
// Migrate kills it.
func (g *moving) Destroy() {}
