package vmm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/live"
)

// patience is how long anything may take that has to come.
const patience = 4 * time.Minute

// cell is one migration with one fault.
type cell struct {
	t *testing.T
	place
	began      time.Time
	waits      live.Waits
	dir        string
	disk, turn string
	kernel     string
	net        *proxy
	// wire is nil unless the hosts are in network namespaces.
	wire *wiring
	// addr is where the source finds the destination: the proxy, or in the local scenario
	// the destination's socket.
	addr string
	// onPoint is called when a process stands at its point.
	onPoint func(*sideProcess, string)
	// standing is the process that was at the point.
	standing *sideProcess
	// source and destination are the processes that are up, or were last; killed are
	// the sides whose first process was killed, and with it the guest that it had.
	source, destination *sideProcess
	killed              map[string]bool
	// releaseLock gives back the lock that takeLock took.
	releaseLock func()

	mu      sync.Mutex
	changed chan struct{} // closed, and made anew, when something was said
	notes   []string
}

// newCell makes hosts that are not up yet, whose waits are longer by a factor.
func newCell(t *testing.T, p place, elf string, slower time.Duration) *cell {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	c := &cell{
		t: t, place: p, began: time.Now(), waits: testWaits,
		dir: dir, disk: filepath.Join(dir, "disk.img"), turn: filepath.Join(dir, "turn"), kernel: elf,
		killed: make(map[string]bool), changed: make(chan struct{}),
	}
	switch p.link {
	case secure:
		testenv.Certificate(t, dir)
	case namespaces:
		c.wire = newWiring(t)
	}
	c.net = newProxyIn(t, c.wire)
	c.addr = c.net.addr()
	if p.scenario == localScenario {
		// The names of tests make paths too long for sockets.
		short, err := os.MkdirTemp("", "cell-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(short) })
		c.addr = "unix:" + filepath.Join(short, "receive")
	}
	c.waits.Ready, c.waits.Commit = c.waits.Ready*slower, c.waits.Commit*slower
	for path, size := range map[string]int{c.disk: 1 << 20, c.turn: 0} {
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// note is printed if the cell fails.
func (c *cell) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notes = append(c.notes, fmt.Sprintf("%8.3f ", time.Since(c.began).Seconds())+fmt.Sprintf(format, args...))
	close(c.changed)
	c.changed = make(chan struct{})
}

// await waits until something is so, which becomes so when something is said.
func (c *cell) await(within time.Duration, is func() bool) bool {
	late := time.After(within)
	for {
		c.mu.Lock()
		ok, changed := is(), c.changed
		c.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-late:
			return false
		}
	}
}

func (c *cell) must(what string, is func() bool) {
	c.t.Helper()
	if !c.await(patience, is) {
		c.t.Fatalf("%s: it never comes", what)
	}
}

// begin brings the hosts up and the migration on its way.
func (c *cell) begin() {
	c.t.Helper()
	c.t.Cleanup(func() {
		if c.t.Failed() {
			for _, n := range c.notes {
				c.t.Log(n)
			}
		}
	})
	c.destination = c.start("destination", c.point)
	c.source = c.start("source", c.point)
	c.await(patience, func() bool { return c.destination.said("ready", "error") && c.source.said("ready", "error") })
	c.net.to(c.destination.text("ready"))
	c.source.order(orderMigrate)
}

// end ends all processes.
func (c *cell) end() {
	for _, s := range []*sideProcess{c.source, c.destination} {
		s.kill()
	}
	c.net.close()
}

// comes says whether a process comes to its point, which is standing then, before the
// migration has ended on both sides.
func (c *cell) comes(reached <-chan *sideProcess) bool {
	over := false
	for end := time.Now().Add(patience); time.Now().Before(end); {
		select {
		case c.standing = <-reached:
			return true
		case <-time.After(5 * time.Millisecond):
		}
		if over {
			return false
		}
		c.mu.Lock()
		ended := c.source.said("outcome", "gone")
		c.mu.Unlock()
		over = ended && c.destination.status().Sessions == 0
	}
	return false
}

// The faults.

func (c *cell) kill(s *sideProcess) {
	c.note("%s is killed", s.Side)
	c.killed[s.Side] = true
	s.kill()
}

func (c *cell) stop(s *sideProcess) string {
	c.note("%s is stopped", s.Side)
	s.signal(unix.SIGSTOP)
	return orderGo
}

func (c *cell) cut(ways ...way) string {
	c.note("the link is cut")
	for _, w := range ways {
		c.net.set(w, lost)
	}
	return orderGo
}

// unplug is a cut that the hosts' own network stacks see.
func (c *cell) unplug() string {
	c.note("the link is down")
	c.wire.plug(c.t, false)
	return orderGo
}

func (c *cell) delay() string {
	c.note("the link is slow")
	c.net.set(toDestination, held)
	c.net.set(toSource, held)
	return orderGo
}

// pastAll waits longer than the two sides do for each other.
func (c *cell) pastAll() { time.Sleep(c.waits.Ready + c.waits.Commit) }

// untilTold is pastAll, unless the source has said how it stands before.
func (c *cell) untilTold() {
	c.await(c.waits.Ready+c.waits.Commit, func() bool { return c.source.said("outcome", "doubt", "gone") })
}

// fail has what is to be done fail. A guest that cannot be run is as lost as one that was
// killed.
func (c *cell) fail() string {
	if c.point == "destination-run-guest-before" {
		c.killed["destination"] = true
	}
	return orderFail
}

// takeLock has somebody else take the disk's lock when nobody has it.
func (c *cell) takeLock() string {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		f, err := os.OpenFile(c.disk, os.O_RDWR, 0)
		if err != nil {
			c.note("the disk: %v", err)
			return
		}
		defer f.Close()
		for unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}) != nil {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond): // a lock that is not waited for has no event
			}
		}
		c.note("the disk is locked by somebody else")
		<-stop
	}()
	c.releaseLock = func() { close(stop); <-done }
	return orderGo
}

func (c *cell) giveLock() {
	c.pastAll()
	c.releaseLock()
}

// settle puts right what can be, as an operator does, and waits until the two sides know
// who owns the guest.
func (c *cell) settle() {
	c.t.Helper()
	c.net.heal()
	if c.wire != nil {
		c.wire.plug(c.t, true)
	}
	for _, s := range []*sideProcess{c.source, c.destination} {
		if s.dead() && !c.killed[s.Side] {
			c.t.Errorf("the process of the %s has ended: %s", s.Side, s.text("gone"))
		}
	}
	if c.destination.dead() {
		c.destination = c.start("destination", "")
		c.must("the destination's restart", func() bool { return c.destination.said("ready") })
		c.net.to(c.destination.text("ready"))
	}
	if c.source.dead() {
		c.source = c.start("resolver", "")
	}
	c.must("the outcome", func() bool { return c.source.said("outcome") })
	if err := c.source.text("outcome"); err != "" && c.source.Side == "resolver" {
		c.t.Errorf("resolve: %s", err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if c.destination.status().Sessions == 0 {
			return
		}
		if time.Now().After(end) {
			c.t.Fatal("the destination does not come to an end")
		}
	}
}

// owners says which sides own the guest as their journals have it.
func (c *cell) owners() (source, destination bool) {
	c.t.Helper()
	here, err := handover.OpenJournal(c.journal("source"))
	if err == nil {
		err = here.MayStart(guestName)
		source = err == nil
		if errors.Is(err, handover.ErrHandedOver) {
			err = nil
		}
	}
	if err != nil {
		c.t.Errorf("the source's journal: %v", err)
	}
	there, err := handover.OpenJournal(c.journal("destination"))
	if err != nil {
		c.t.Fatal(err)
	}
	// Without a record it never had the guest.
	epoch, err := there.Epoch(guestName)
	if err != nil {
		c.t.Errorf("the destination's journal: %v", err)
	}
	if open, err := here.Unsettled(); err != nil || len(open) > 0 {
		c.t.Errorf("the source has records of what is not decided: %v, %v", open, err)
	}
	return source, epoch > 1
}

// judge looks whether there is one owner, which has the guest unless its process was
// killed, and whether the guest is sound.
func (c *cell) judge() {
	c.t.Helper()
	source, destination := c.owners()
	if source == destination {
		c.t.Errorf("by the journals the source owns the guest: %v, the destination: %v; want one of them", source, destination)
	}
	c.expect(c.source, source && !c.killed["source"])
	c.expect(c.destination, destination && !c.killed["destination"])
}

// expect says whether a side has the guest, and whether it is sound then.
func (c *cell) expect(s *sideProcess, guest bool) {
	c.t.Helper()
	first := s.status()
	if first.Guest != guest {
		c.t.Errorf("does the guest run at the %s? %v, want %v", s.Side, first.Guest, guest)
	}
	w := first
	for end := time.Now().Add(patience); w.Guest && w.Count < first.Count+2; w = s.status() {
		if time.Now().After(end) {
			c.t.Fatalf("at the %s the guest does not go on from %d", s.Side, first.Count)
		}
		time.Sleep(diaryPause) // a guest that counts has no event for this
	}
	if w.Wrong != 0 {
		c.t.Errorf("at the %s %d words of the guest's memory are wrong", s.Side, w.Wrong)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.notes {
		if bytes.Contains([]byte(n), []byte("violation")) {
			c.t.Error(n)
		}
	}
}

// moveAgain moves a guest whose migration failed, now that nothing fails but, on a slow
// machine, the short waits.
func (c *cell) moveAgain() {
	c.t.Helper()
	if c.t.Failed() || c.source.Side != "source" || !c.source.status().Guest {
		return
	}
	c.source.order(orderWell)
	c.destination.order(orderWell)
	for attempt := 1; ; attempt++ {
		c.source.forget("outcome")
		c.source.order(orderMigrate)
		c.must("the outcome of the second migration", func() bool { return c.source.said("outcome") })
		err := c.source.text("outcome")
		if err == "" {
			break
		}
		if attempt == 8 {
			c.t.Errorf("the guest cannot be moved any more: %s", err)
			return
		}
	}
	c.must("the second migration's end", func() bool { return c.destination.said("runs") })
	if source, destination := c.owners(); source || !destination {
		c.t.Errorf("after the second migration the source owns the guest: %v, the destination: %v", source, destination)
	}
	c.expect(c.source, false)
	c.expect(c.destination, true)
}

func (c *cell) journal(side string) string { return filepath.Join(c.dir, side) }
