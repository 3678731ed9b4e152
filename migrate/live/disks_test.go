package live

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/stream"
	"golang.org/x/sys/unix"
)

// Disks has none come with the guest.
func (i *fakeIncoming) Disks() []IncomingDisk { return nil }

// fakeDisk is a disk in memory. A granule that is all zeros is a hole.
type fakeDisk struct {
	mu    sync.Mutex
	p     []byte
	dirty []uint64 // nil without a log
}

func newFakeDisk(size int, seed uint64) *fakeDisk {
	d := &fakeDisk{p: make([]byte, size)}
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := range d.p {
		d.p[i] = byte(rng.Uint32()) | 1
	}
	clear(d.p[2*DiskGranule : 5*DiskGranule])
	return d
}

func (d *fakeDisk) Capacity() uint64 { return uint64(len(d.p)) }

func (d *fakeDisk) ReadAt(p []byte, offset int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.p[offset:]), nil
}

func (d *fakeDisk) NextData(offset uint64) (start, end uint64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	size := d.Capacity()
	for at := offset; at < size; at = at/DiskGranule*DiskGranule + DiskGranule {
		end := min(size, at/DiskGranule*DiskGranule+DiskGranule)
		if len(bytes.Trim(d.p[at:end], "\x00")) > 0 {
			return at, end, nil
		}
	}
	return size, size, nil
}

func (d *fakeDisk) StartLog() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dirty = make([]uint64, len(d.p)/DiskGranule/64+1)
}

func (d *fakeDisk) StopLog() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dirty = nil
}

func (d *fakeDisk) FetchDirty(dst []uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range dst {
		dst[i] |= d.dirty[i]
		d.dirty[i] = 0
	}
}

// write writes some sectors.
func (d *fakeDisk) write(rng *rand.Rand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	sector := rng.IntN(len(d.p) / 512)
	at := d.p[sector*512 : sector*512+512]
	for i := range at {
		at[i] = byte(rng.Uint32())
	}
	if rng.IntN(4) == 0 {
		clear(at)
	}
	if g := sector * 512 / DiskGranule; d.dirty != nil {
		d.dirty[g/64] |= 1 << (g % 64)
	}
}

func (d *fakeDisk) contents() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.p)
}

// diskGuest writes its disks until it is paused.
type diskGuest struct {
	*fakeGuest
	disks  []*fakeDisk
	paused chan struct{}
	once   sync.Once
	writes sync.WaitGroup
}

func newDiskGuest(t testing.TB, sizes ...int) *diskGuest {
	g := &diskGuest{fakeGuest: newFakeGuest(t), paused: make(chan struct{})}
	for i, size := range sizes {
		d := newFakeDisk(size, uint64(i))
		g.disks = append(g.disks, d)
		g.writes.Go(func() {
			for rng := rand.New(rand.NewPCG(5, uint64(i))); !isClosed(g.paused); {
				d.write(rng)
			}
		})
	}
	t.Cleanup(g.Pause)
	return g
}

func (g *diskGuest) Pause() {
	g.once.Do(func() { close(g.paused) })
	g.writes.Wait()
	g.fakeGuest.Pause()
}

func (g *diskGuest) options(t testing.TB, addr string) SourceOptions {
	o := options(t, addr)
	for _, d := range g.disks {
		o.Disks = append(o.Disks, d)
	}
	return o
}

// diskIncoming puts disks that come into files.
type diskIncoming struct {
	*fakeIncoming
	dir   string
	keep  bool
	full  bool // has no room
	files []*DiskFile
}

func (i *diskIncoming) Prepare(o Offer) (*memory.Guest, error) {
	for k, d := range o.Disks {
		f, err := CreateDiskFile(i.path(k), d.Size, d.Data)
		if err != nil {
			return nil, err
		}
		i.files = append(i.files, f)
	}
	return i.fakeIncoming.Prepare(o)
}

func (i *diskIncoming) path(k int) string { return filepath.Join(i.dir, string(rune('a'+k))) }

func (i *diskIncoming) Disks() (all []IncomingDisk) {
	for _, f := range i.files {
		var target stream.DiskTarget = f
		if i.full {
			target = fullDisk{f}
		}
		all = append(all, IncomingDisk{target, f.Leftover()})
	}
	return all
}

// fullDisk is on a file system without room.
type fullDisk struct{ *DiskFile }

func (fullDisk) WriteAt([]byte, int64) (int, error) { return 0, unix.ENOSPC }

func (i *diskIncoming) TakeLocks() error {
	for _, f := range i.files {
		if err := f.Commit(); err != nil {
			return err
		}
	}
	return i.fakeIncoming.TakeLocks()
}

func (i *diskIncoming) DropLocks() error {
	for _, f := range i.files {
		if err := f.Remove(); err != nil {
			return err
		}
	}
	return nil
}

func (i *diskIncoming) Destroy() {
	i.fakeIncoming.Destroy()
	for _, f := range i.files {
		if f.Committed() {
			continue
		}
		if i.keep {
			_ = f.Close()
		} else {
			_ = f.Remove()
		}
	}
}

// diskHost receives one guest after the other.
type diskHost struct {
	addr  string
	next  chan *diskIncoming
	ended chan handover.DestinationState
}

func newDiskHost(t testing.TB) *diskHost {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &diskHost{addr: l.Addr().String(), next: make(chan *diskIncoming, 1), ended: make(chan handover.DestinationState, 16)}
	s := &Server{
		Journal: newJournal(t), Host: "there", New: func(Offer) (Incoming, error) { return <-h.next, nil },
		Ended: func(_ Offer, state handover.DestinationState, _ error) { h.ended <- state },
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h *diskHost) expect(t testing.TB, dir string) *diskIncoming {
	i := &diskIncoming{fakeIncoming: newFakeIncoming(t), dir: dir}
	h.next <- i
	return i
}

// same compares the files with the disks of a guest that stands still.
func (g *diskGuest) same(t *testing.T, i *diskIncoming) {
	t.Helper()
	for k, d := range g.disks {
		if got, err := os.ReadFile(i.path(k)); err != nil || !bytes.Equal(got, d.contents()) {
			t.Errorf("disk %d came as something else, %v", k, err)
		}
		if d.dirty != nil {
			t.Errorf("disk %d is logged still", k)
		}
	}
}

func TestMigrateDisks(t *testing.T) {
	h := newDiskHost(t)
	in := h.expect(t, t.TempDir())
	g := newDiskGuest(t, 4<<20, 1<<20+512)
	o := g.options(t, h.addr)
	o.Compress = stream.Auto
	report, err := Migrate(t.Context(), t.Context(), g, o)
	if err != nil {
		t.Fatal(err)
	}
	if s := <-h.ended; s != handover.DestinationDone {
		t.Errorf("the destination is %v", s)
	}
	g.same(t, in)
	if names, err := os.ReadDir(in.dir); err != nil || len(names) != 2 {
		t.Errorf("files there: %v, %v", names, err)
	}
	if d := report.Disks; d.Data < 4<<20 || d.Wire == 0 || d.Same != 0 {
		t.Errorf("report %+v", d)
	}
}

// TestMigrateDisksAgain: what an attempt has left behind is not sent again.
func TestMigrateDisksAgain(t *testing.T) {
	h, dir := newDiskHost(t), t.TempDir()
	h.expect(t, dir).keep = true
	g := newDiskGuest(t, 8<<20)
	g.once.Do(func() { close(g.paused) }) // it writes nothing: how much is the same is known
	g.writes.Wait()
	why := errors.New("another time")
	ctx, cancel := context.WithCancelCause(t.Context())
	o := g.options(t, h.addr)
	o.Progress = func(p Progress) {
		if p.Phase == PhaseStop {
			cancel(why)
		}
	}
	if _, err := Migrate(ctx, t.Context(), g, o); !errors.Is(err, why) {
		t.Fatalf("got %v", err)
	}
	<-h.ended
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 || names[0].Name() != "a"+InterimSuffix {
		t.Fatalf("files there: %v, %v", names, err)
	}
	g.disks[0].write(rand.New(rand.NewPCG(1, 1)))
	in := h.expect(t, dir)
	report, err := Migrate(t.Context(), t.Context(), g, g.options(t, h.addr))
	if err != nil {
		t.Fatal(err)
	}
	g.same(t, in)
	if d := report.Disks; d.Data > 2*stream.DiskBlock || d.Zero == 0 || d.Same < 5<<20 {
		t.Errorf("report %+v", d)
	}
}

// TestMigrateDisksFails: the guest runs on where it was, and nothing is left there.
func TestMigrateDisksFails(t *testing.T) {
	for name, prepare := range map[string]func(*diskIncoming){
		"no space left on device": func(i *diskIncoming) { i.full = true },
		"a mishap":                func(i *diskIncoming) { i.load = errMishap },
		"taken":                   func(i *diskIncoming) { i.locks = errors.New("taken") },
	} {
		t.Run(name, func(t *testing.T) {
			h := newDiskHost(t)
			in := h.expect(t, t.TempDir())
			prepare(in)
			g := newDiskGuest(t, 4<<20)
			_, err := Migrate(t.Context(), t.Context(), g, g.options(t, h.addr))
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v", err)
			}
			<-h.ended
			if !g.runs() || in.runs() {
				t.Errorf("runs here: %v, there: %v", g.runs(), in.runs())
			}
			if names, err := os.ReadDir(in.dir); err != nil || len(names) != 0 {
				t.Errorf("files there: %v, %v", names, err)
			}
		})
	}
}

func TestCheckDisks(t *testing.T) {
	for _, test := range []struct {
		name  string
		disks []OfferedDisk
		good  bool
	}{
		{"none", nil, true},
		{"one", []OfferedDisk{{Size: 512, Data: 512}}, true},
		{"the largest", []OfferedDisk{{Size: stream.MaxDisk}}, true},
		{"empty", []OfferedDisk{{}}, false},
		{"half a sector", []OfferedDisk{{Size: 256}}, false},
		{"too large", []OfferedDisk{{Size: stream.MaxDisk + 512}}, false},
		{"more data than disk", []OfferedDisk{{Size: 512, Data: 1024}}, false},
		{"too many", make([]OfferedDisk, MaxDisks+1), false},
	} {
		if err := checkDisks(test.disks); (err == nil) != test.good {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// TestDiskConnections: a disk has one connection, and there are no more than disks.
func TestDiskConnections(t *testing.T) {
	disks, err := newIncomingDisks([]OfferedDisk{{Size: 512}}, []IncomingDisk{{Leftover: true}})
	if err != nil {
		t.Fatal(err)
	}
	if disks.next(1) != nil || disks.next(65535) != nil {
		t.Error("there is another disk")
	}
	if r := disks.next(0); r == nil || r.Size != 512 {
		t.Errorf("the disk: %+v", r)
	}
	if disks.next(0) != nil {
		t.Error("the disk comes twice")
	}
	if _, err := newIncomingDisks([]OfferedDisk{{Size: 512}}, nil); err == nil {
		t.Error("there is no place for the disk")
	}
}
