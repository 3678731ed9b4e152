package live

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// The fake guest has written to the first part of its memory.
const (
	guestSize = 1 << 20
	guestUsed = 32 << 10
)

func newMemory(t testing.TB) *memory.Guest {
	t.Helper()
	mem, err := memory.New(memory.Options{Size: guestSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mem.Close() })
	return mem
}

// fakeGuest is a Guest that writes nothing.
type fakeGuest struct {
	mem   *memory.Guest
	state []byte

	mu                sync.Mutex
	paused, destroyed bool
	locked            bool
}

func newFakeGuest(t testing.TB) *fakeGuest {
	g := &fakeGuest{mem: newMemory(t), state: []byte("the state"), locked: true}
	view, err := g.mem.View(0, guestSize)
	if err != nil {
		t.Fatal(err)
	}
	for i := range view[:guestUsed] {
		view[i] = byte(i * 7 / 5)
	}
	return g
}

func (g *fakeGuest) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

func (g *fakeGuest) Memory() *memory.Guest       { return g.mem }
func (g *fakeGuest) StartDirtyLog() error        { return nil }
func (g *fakeGuest) FetchDirty(p []uint64) error { clear(p); return nil }
func (g *fakeGuest) Throttle(int)                {}
func (g *fakeGuest) Save() ([]byte, error)       { return g.state, nil }
func (g *fakeGuest) Pause()                      { g.set(func() { g.paused = true }) }
func (g *fakeGuest) Resume()                     { g.set(func() { g.paused = false }) }
func (g *fakeGuest) Destroy()                    { g.set(func() { g.destroyed = true }) }
func (g *fakeGuest) TakeLocks() error            { g.set(func() { g.locked = true }); return nil }
func (g *fakeGuest) DropLocks() error            { g.set(func() { g.locked = false }); return nil }

// runs says whether the guest goes on where it was.
func (g *fakeGuest) runs() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.paused && !g.destroyed && g.locked
}

// fakeIncoming is an Incoming without a machine.
type fakeIncoming struct {
	mem *memory.Guest
	// What fails.
	prepare, load, locks error

	mu        sync.Mutex
	state     []byte
	loads     int
	ran, gone bool
	died      chan struct{}
}

func newFakeIncoming(t testing.TB) *fakeIncoming {
	return &fakeIncoming{mem: newMemory(t), died: make(chan struct{})}
}

func (i *fakeIncoming) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

func (i *fakeIncoming) Name() string                         { return "traveller" }
func (i *fakeIncoming) Prepare(Offer) (*memory.Guest, error) { return i.mem, i.prepare }
func (i *fakeIncoming) TakeLocks() error                     { return i.locks }
func (i *fakeIncoming) DropLocks() error                     { return nil }
func (i *fakeIncoming) Run() error                           { i.set(func() { i.ran = true }); return nil }
func (i *fakeIncoming) Destroy()                             { i.set(func() { i.gone = true }) }
func (i *fakeIncoming) Died() <-chan struct{}                { return i.died }
func (i *fakeIncoming) Tell(handover.Phase, string)          {}
func (i *fakeIncoming) Paged(*Paging)                        {}
func (i *fakeIncoming) Missing(error, bool)                  {}
func (i *fakeIncoming) Load(state []byte) error {
	i.set(func() { i.state = bytes.Clone(state); i.loads++ })
	return i.load
}

// runs says whether the guest is here.
func (i *fakeIncoming) runs() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.ran && !i.gone
}

// quick are waits for what is not to come.
var quick = Waits{Ready: 50 * time.Millisecond, Commit: 50 * time.Millisecond, Again: 2 * time.Millisecond, AgainMost: 10 * time.Millisecond}

func newJournal(t testing.TB) *handover.Journal {
	t.Helper()
	j, err := handover.OpenJournal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// there is a host that receives.
type there struct {
	Server
	addr  string
	in    *fakeIncoming
	ended chan handover.DestinationState
}

func newThere(t testing.TB) *there {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &there{addr: l.Addr().String(), in: newFakeIncoming(t), ended: make(chan handover.DestinationState, 16)}
	d.Journal, d.Host = newJournal(t), "there"
	d.New = func(Offer) (Incoming, error) { return d.in, nil }
	d.Ended = func(_ Offer, s handover.DestinationState, _ error) { d.ended <- s }
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	go func() { served <- d.Serve(ctx, l) }()
	return d
}

// options are those of a guest that moves to an address.
func options(t testing.TB, addr string) SourceOptions {
	return SourceOptions{
		Offer: Offer{ID: handover.NewID(), Epoch: 1, Name: "traveller", Guest: []byte("{}")},
		Addr:  addr, Journal: newJournal(t), Policy: stream.Policy{Downtime: time.Minute, Rounds: 3},
	}
}

// stranger is a source without manners: the control connection of a migration that it has
// offered, and whose answer it has read.
func stranger(t testing.TB, d *there) (*control, *stream.Dialer) {
	t.Helper()
	id := handover.NewID()
	dialer := &stream.Dialer{Addr: d.addr, ID: stream.ID(id)}
	conn, err := dialer.Control(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := newControl(conn, nil)
	err = c.sendJSON(frameOffer, Offer{Version: Version, ID: id, Epoch: 1, Name: "traveller", Connections: 1, Guest: []byte("{}")})
	if err == nil {
		_, err = c.expect(frameAnswer, time.Minute)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c, dialer
}

var errMishap = errors.New("a mishap")
