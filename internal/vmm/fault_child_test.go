package vmm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/live"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// faultVariable makes this test's process one side of a migration, as the JSON of a role
// in it says.
const faultVariable = "GODWIT_TEST_SIDE"

// role is what a process is to do.
type role struct {
	// Side is "source", "destination", or "resolver": a source that has only its
	// journal.
	Side     string
	Scenario string
	Journal  string
	// Disk is the guest's, Turn the file whose lock a side has while its guest runs.
	Disk, Turn string
	Kernel     string
	// Addr is where a source finds the destination, which listens at Listen.
	Addr, Listen string
	// TLS is the folder with the certificate and key of both sides, "" for plain
	// connections.
	TLS string
	// Point is where to stop and ask, once; "*" is each one.
	Point string
	Waits live.Waits
}

// guestName is the name of the guest on both hosts.
const guestName = "traveller"

// word is what a process tells the test.
type word struct {
	Kind string
	// Text is the point, the address, or the error.
	Text string `json:",omitempty"`
	// What follows is the answer to "status".
	Guest    bool   `json:",omitempty"`
	Sessions int    `json:",omitempty"`
	Count    uint64 `json:",omitempty"`
	Wrong    uint64 `json:",omitempty"`
}

// The orders that the test gives, one a line. The first four answer a point.
const (
	orderGo      = "go"
	orderUnknown = "unknown" // fail as an fsync does
	orderFull    = "full"    // go on with a disk that is full until orderRoom
	orderFail    = "fail"
	orderRoom    = "room"
	orderMigrate = "migrate"
	orderStatus  = "status"
	orderWell    = "well" // the scenario's mishap is over
)

// TestFaultChild is a side of TestFaults.
func TestFaultChild(t *testing.T) {
	text := os.Getenv(faultVariable)
	if text == "" {
		return
	}
	s := &faultSide{t: t, orders: bufio.NewScanner(os.NewFile(3, "orders")), words: json.NewEncoder(os.NewFile(4, "words")), answers: make(chan string), reached: make(map[string]bool), sessions: make(map[handover.ID]bool)}
	if err := json.Unmarshal([]byte(text), &s.role); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(unix.SIGXFSZ) // a full disk is played with RLIMIT_FSIZE
	if err := s.live(); err != nil {
		s.tell(word{Kind: "error", Text: err.Error()})
		t.Fatal(err)
	}
}

// faultSide is the process of a side.
type faultSide struct {
	t *testing.T
	role
	orders  *bufio.Scanner
	answers chan string
	journal *handover.Journal

	telling sync.Mutex
	words   *json.Encoder

	tracing sync.Mutex
	reached map[string]bool
	cancel  context.CancelCauseFunc

	mu       sync.Mutex
	vm       *fixture
	turn     *turn
	sessions map[handover.ID]bool
}

func (s *faultSide) tell(w word) {
	s.telling.Lock()
	defer s.telling.Unlock()
	if s.words.Encode(w) != nil {
		os.Exit(1) // the test is gone
	}
}

// live does what the role says, and takes orders until the test ends.
func (s *faultSide) live() (err error) {
	if s.journal, err = handover.OpenJournal(s.Journal); err != nil {
		return err
	}
	switch s.Side {
	case "source":
		err = s.beSource()
	case "destination":
		err = s.beDestination()
	case "resolver":
		go s.resolve()
	}
	if err != nil {
		return err
	}
	for s.orders.Scan() {
		switch order := s.orders.Text(); order {
		case orderMigrate:
			go s.migrate()
		case orderStatus:
			s.tell(s.status())
		case orderWell:
			s.mu.Lock()
			s.Scenario = ""
			s.mu.Unlock()
		case orderRoom:
			limitFiles(unix.RLIM_INFINITY)
		default:
			s.answers <- order
		}
	}
	os.Exit(0)
	return nil
}

// limitFiles bounds the length of the files that this process writes.
func limitFiles(n uint64) {
	var l unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_FSIZE, &l)
	l.Cur = min(n, l.Max)
	_ = unix.Setrlimit(unix.RLIMIT_FSIZE, &l)
}

// trace stops at the point where the test wants to do something, the first time.
func (s *faultSide) trace(p live.Point) error {
	s.tracing.Lock()
	defer s.tracing.Unlock()
	name := s.Side + "-" + p.String()
	if s.mishap("canceled") && p == (live.Point{Op: live.OpMemory, What: "last", After: true}) {
		why := errors.New("somebody has changed their mind")
		s.cancel(why)
		return why // or the guest might have moved before that is noticed
	}
	if s.reached[name] || s.Point != "*" && s.Point != name {
		return nil
	}
	s.reached[name] = true
	s.tell(word{Kind: "point", Text: name})
	switch <-s.answers {
	case orderUnknown:
		return fmt.Errorf("fsync: %w: %w", unix.EIO, handover.ErrUnknown)
	case orderFull:
		limitFiles(16)
	case orderFail:
		return errors.New("a fault")
	}
	return nil
}

// mishap says whether the scenario has one of that name.
func (s *faultSide) mishap(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Scenario == name
}

// newGuest makes a VM for this side.
func (s *faultSide) newGuest() *fixture {
	f := &fixture{t: s.t, heard: make(chan struct{}, 1)}
	sys, err := kvm.Open("")
	if err != nil {
		s.t.Fatal(err)
	}
	f.VM = New(context.Background(), Options{System: sys, Name: guestName, Event: f.event}, Config{CPUs: 1, Memory: 16 << 20, Kernel: s.Kernel})
	return f
}

func (s *faultSide) beSource() error {
	if err := s.journal.MayStart(guestName); err != nil {
		return err
	}
	s.vm = s.newGuest()
	s.turn = newTurn(s, s.vm, 1)
	err := s.vm.Configure(func(c *Config) error {
		c.Drives = []Drive{{ID: "data", Config: blk.Config{Path: s.Disk}}}
		return nil
	})
	if err != nil {
		return err
	}
	s.turn.begin()
	if err := s.vm.Start(); err != nil {
		return err
	}
	s.vm.runs()
	s.turn.throttle(idle)
	s.tell(word{Kind: "ready"})
	return nil
}

// migrate is Migrate of a guest whose turns are watched.
func (s *faultSide) migrate() {
	ctx, cancel := context.WithCancelCause(context.Background())
	s.cancel = cancel
	v := s.vm
	err := func() error {
		v.op.Lock()
		defer v.op.Unlock()
		return v.useSession(func(session *session) error { return s.move(ctx, session) })
	}()
	if err == nil || errors.Is(err, live.ErrInDoubt) {
		v.Kill(ErrMigrated)
		<-v.Done()
		s.turn.end()
	}
	w := word{Kind: "outcome"}
	if err != nil {
		w.Text = err.Error()
	}
	s.tell(w)
}

func (s *faultSide) move(ctx context.Context, session *session) error {
	v := s.vm
	<-session.entered
	g := &moving{Machine: session.m}
	epoch, err := s.journal.Epoch(guestName)
	if err != nil {
		return err
	}
	config, err := s.security(false)
	if err != nil {
		return err
	}
	g.Throttle(0) // an offer pauses
	offer, err := v.offer(g)
	g.Throttle(idle)
	if err != nil {
		return err
	}
	o := live.Offer{ID: handover.NewID(), Epoch: epoch, Name: guestName, Guest: offer}
	if isLocal(s.Addr) {
		if o.Files, o.SharesMemory, err = passedFiles(session.m); err != nil {
			return err
		}
		defer closeFiles(o.Files)
	}
	_, err = live.Migrate(ctx, v.ctx, &watchedGuest{g, s.turn}, live.SourceOptions{
		Offer: o,
		Addr:  s.Addr, TLS: config, Policy: stream.Policy{Downtime: time.Minute, Rounds: 3}, Waits: s.Waits,
		Journal: s.journal, Died: session.m.Ended(), Trace: s.trace,
		Progress: func(p live.Progress) {
			if p.Phase == live.PhaseInDoubt {
				s.tell(word{Kind: "doubt", Text: p.Reason})
			}
		},
	})
	if err != nil && !errors.Is(err, live.ErrInDoubt) {
		return errors.Join(err, session.m.StopDirtyLog())
	}
	return err
}

func (s *faultSide) beDestination() error {
	config, err := s.security(true)
	if err != nil {
		return err
	}
	network, addr := "tcp", s.Listen
	if path, local := strings.CutPrefix(s.Addr, "unix:"); local {
		network, addr = "unix", path
		// One that was killed has left its own.
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		return err
	}
	server := &live.Server{
		Journal: s.journal, Host: "there", TLS: config, Waits: s.Waits, Trace: s.trace,
		New: func(o live.Offer) (live.Incoming, error) {
			f := s.newGuest()
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.turn != nil && s.turn.on() {
				return nil, errors.New("the guest is here already")
			}
			s.sessions[o.ID] = true
			s.vm, s.turn = f, newTurn(s, f, o.Epoch+1)
			return &watchedIncoming{f.Receive(ReceiveRequest{Trusted: true}), s, s.turn}, nil
		},
		Ended: func(o live.Offer, state handover.DestinationState, err error) {
			s.mu.Lock()
			delete(s.sessions, o.ID)
			s.mu.Unlock()
			s.tell(word{Kind: "ended", Text: fmt.Sprintf("%v: %v", state, err)})
		},
	}
	go func() {
		err := server.Serve(context.Background(), l)
		s.tell(word{Kind: "error", Text: fmt.Sprintf("the server has ended: %v", err)})
	}()
	s.tell(word{Kind: "ready", Text: l.Addr().String()})
	return nil
}

// resolve is for a source whose process has ended.
func (s *faultSide) resolve() {
	config, err := s.security(false)
	open, e := s.journal.Unsettled()
	err = errors.Join(err, e)
	for _, r := range open {
		if r.Role == handover.RoleSource && err == nil {
			_, err = live.Resolve(context.Background(), live.ResolveOptions{Journal: s.journal, Key: r.Key(), TLS: config, Waits: s.Waits})
		}
	}
	w := word{Kind: "outcome"}
	if err != nil {
		w.Text = err.Error()
	}
	s.tell(w)
}

// status is how the guest is.
func (s *faultSide) status() word {
	s.mu.Lock()
	vm, turn, sessions := s.vm, s.turn, len(s.sessions)
	s.mu.Unlock()
	w := word{Kind: orderStatus, Sessions: sessions}
	if turn == nil || !turn.on() {
		return w
	}
	r := vm.result()
	w.Guest, w.Count, w.Wrong = true, r.Count, r.Mismatches
	return w
}
