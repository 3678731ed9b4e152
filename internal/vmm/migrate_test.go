package vmm

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/live"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// host is one that guests come to and leave.
type host struct {
	t       *testing.T
	journal *handover.Journal
	addr    string
	request ReceiveRequest
	// before, if set, is called when a guest is about to run.
	before func()
	// trace, if set, is that of live.Server.
	trace live.Trace
	// came gets the guests that came, and ended what became of each migration.
	came  chan *fixture
	ended chan error
}

func newHost(t *testing.T) *host {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return newHostAt(t, l, l.Addr().String())
}

// newHostAt is a host that listens at an address.
func newHostAt(t *testing.T, l net.Listener, addr string) *host {
	t.Helper()
	j, err := handover.OpenJournal(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, journal: j, addr: addr, came: make(chan *fixture, 1), ended: make(chan error, 16)}
	h.request.Trusted = true
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	server := &live.Server{
		Journal: j, Host: "there",
		Trace: func(p live.Point) error {
			if h.trace == nil {
				return nil
			}
			return h.trace(p)
		},
		New: func(o live.Offer) (live.Incoming, error) {
			f := newVM(t, "", func(options *Options) { options.Name = o.Name })
			in := f.Receive(h.request)
			return &arriving{in, h.before, func() { h.came <- f }}, nil
		},
		Ended: func(_ live.Offer, _ handover.DestinationState, err error) { h.ended <- err },
	}
	go func() { served <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return h
}

// arriving tells when the guest runs.
type arriving struct {
	live.Incoming
	before, runs func()
}

func (a *arriving) Run() error {
	if a.before != nil {
		a.before()
	}
	err := a.Incoming.Run()
	if err == nil {
		a.runs()
	}
	return err
}

// policy is that of the tests, which run on machines that are slow at times.
var policy = stream.Policy{Downtime: 2 * time.Second, Rounds: 30}

// to moves a guest from a host with the journal j.
func (f *fixture) to(h *host, j *handover.Journal) (live.Report, error) {
	f.t.Helper()
	return f.Migrate(f.t.Context(), MigrateRequest{Addr: h.addr, Journal: j, Policy: policy})
}

// moved moves a guest and returns it at its new place.
func (f *fixture) moved(h *host, j *handover.Journal) *fixture {
	f.t.Helper()
	report, err := f.to(h, j)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Logf("moved: %+v", report)
	<-f.Done()
	if _, err := f.Wait(); err != nil {
		f.t.Fatal(err)
	}
	return <-h.came
}

func TestMigrate(t *testing.T) {
	here, there := newHost(t), newHost(t)
	f := newVM(t, checker(t), func(o *Options) { o.Name = "traveller" })
	f.must(f.Configure(func(c *Config) error {
		c.CPUs, c.Memory = 2, 64<<20
		c.Balloon = &balloon.Config{DeflateOnOOM: true}
		return nil
	}))
	f.must(f.Start())
	f.runs()
	for range 2 {
		rounds := f.rounds()
		f = f.moved(there, here.journal)
		if f.rounds() < rounds {
			t.Errorf("the guest's counter went from %d back to %d", rounds, f.rounds())
		}
		f.sound()
		if err := here.journal.MayStart("traveller"); !errors.Is(err, handover.ErrHandedOver) {
			t.Errorf("may it be started where it was? %v", err)
		}
		if err := <-there.ended; err != nil {
			t.Error(err)
		}
		here, there = there, here
	}
}

// TestMigratePaused: a guest that is paused is so at its new place.
func TestMigratePaused(t *testing.T) {
	here, there := newHost(t), newHost(t)
	f := newVM(t, checker(t), nil)
	f.must(f.Start())
	f.runs()
	f.must(f.Pause())
	f = f.moved(there, here.journal)
	if p := f.Phase(); p != Paused {
		t.Errorf("it is %v", p)
	}
	f.must(f.Resume())
	f.sound()
}

// runWithDisk runs a guest that has a disk, data, of a MiB of zeros.
func runWithDisk(t *testing.T) (f *fixture, disk string) {
	t.Helper()
	disk = filepath.Join(t.TempDir(), "disk.img")
	f = newVM(t, checker(t), nil)
	f.must(os.WriteFile(disk, make([]byte, 1<<20), 0o600))
	f.must(f.Configure(func(c *Config) error {
		c.Drives = []Drive{{ID: "data", Config: blk.Config{Path: disk}}}
		return nil
	}))
	f.must(f.Start())
	f.runs()
	return f, disk
}

// TestMigrateDisk: the disk's lock goes with the guest.
func TestMigrateDisk(t *testing.T) {
	here, there := newHost(t), newHost(t)
	f, disk := runWithDisk(t)
	f = f.moved(there, here.journal)
	f.sound()
	if _, err := blk.New(blk.Config{Path: disk}); !errors.Is(err, blk.ErrInUse) {
		t.Errorf("the disk is not locked: %v", err)
	}
}

// TestMigrateRefused: what cannot be is said before the guest notices anything.
func TestMigrateRefused(t *testing.T) {
	here, there := newHost(t), newHost(t)
	there.request.Trusted = false
	there.request.Disks = map[string]string{"other": "/nowhere"}
	f, _ := runWithDisk(t)
	_, err := f.to(there, here.journal)
	var refused *live.RefusedError
	if !errors.As(err, &refused) || len(refused.Reasons) != 2 {
		t.Fatalf("got %v", err)
	}
	for i, want := range []string{"--disk data=PATH", `no disk "other"`} {
		if !strings.Contains(refused.Reasons[i], want) {
			t.Errorf("reason %q, want one with %q", refused.Reasons[i], want)
		}
	}
	f.sound()
	if err := here.journal.MayStart(f.Name()); err != nil {
		t.Error(err)
	}
	there.request = ReceiveRequest{Trusted: true}
	f.moved(there, here.journal).sound()
}

// TestMigrateCanceled: a migration that is called off leaves the guest as it was.
func TestMigrateCanceled(t *testing.T) {
	here, there := newHost(t), newHost(t)
	f := newVM(t, checker(t), nil)
	f.must(f.Start())
	f.runs()
	limit := stream.NewLimiter(1 << 20)
	why := errors.New("somebody has changed their mind")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := f.Migrate(ctx, MigrateRequest{
		Addr: there.addr, Journal: here.journal, Limit: limit, Policy: policy,
		Progress: func(p live.Progress) {
			if p.Phase == live.PhaseCopy && p.Sent > 0 {
				cancel(why)
			}
		},
	})
	if !errors.Is(err, why) {
		t.Fatalf("got %v", err)
	}
	f.sound()
	<-there.ended
	f.moved(there, here.journal).sound()
}

// TestMigrateNobody: nobody listens.
func TestMigrateNobody(t *testing.T) {
	here := newHost(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	f := newVM(t, checker(t), nil)
	f.must(f.Start())
	f.runs()
	if _, err := f.Migrate(t.Context(), MigrateRequest{Addr: l.Addr().String(), Journal: here.journal, Policy: policy}); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v", err)
	}
	f.sound()
}
