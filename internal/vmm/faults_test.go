package vmm

import (
	"flag"
	"hash/fnv"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/migrate/live"
)

// The fault matrix of live migration: each point of each scenario times each fault that
// can be there. The points are those that a migration without a fault passes, so that
// none is forgotten. Of each cell two processes are the hosts, this one is the network
// between them, and the operator. Some cells are there again with TLS, and with the hosts
// in two network namespaces, whose link can fail, too.
//
// All cells run with GODWIT_TEST_FAULTS=all, else a sample that is always the same; one
// cell is run with -run 'TestFaults/loopback/completed/source-send-COMMIT-after/cut-both$'.
const faultsVariable = "GODWIT_TEST_FAULTS"

// sampled is one in how many cells is run as a rule, and again one in how many cells is there
// again on the other links.
const (
	sampled = 48
	again   = 8
)

// The links between the hosts.
const (
	loopback   = "loopback"
	secure     = "tls" // over loopback
	namespaces = "namespaces"
)

var links = []string{loopback, secure, namespaces}

// scenarios are what happens without a fault.
var scenarios = []string{
	"completed",
	"refused",    // the destination cannot take the disks' locks
	"unloadable", // nor load the state
	"canceled",   // by the user of the source, when its memory was sent
	localScenario,
}

// localScenario is a migration between two processes of one host, which have the guest's
// memory both, and no network between them.
const localScenario = "local"

// required are points that the scenarios must have passed for the matrix to be whole.
var required = []string{
	"source-send-offer", "destination-send-answer", "source-memory-first", "source-memory-last", "source-send-state",
	"destination-send-READY", "source-journal-RELEASED", "source-locks-drop", "source-send-COMMIT", "destination-locks-take",
	"destination-journal-OWNER", "destination-run-guest", "destination-send-STARTED", "source-journal-GONE", "source-send-ACK",
	"destination-journal-settled", "destination-journal-REFUSED", "destination-locks-drop", "destination-send-REFUSED",
	"source-locks-take", "source-journal-OWNER", "source-send-ABORT", "destination-send-ABORT",
}

// testWaits are short: what they are about is what comes after them.
var testWaits = live.Waits{Ready: 700 * time.Millisecond, Commit: 700 * time.Millisecond, Again: 20 * time.Millisecond, AgainMost: 100 * time.Millisecond}

// fault is something that goes wrong at a point.
type fault struct {
	name string
	// link says that it is one of the network.
	link bool
	// fits says whether it can be at a point; nil is at all.
	fits func(point string) bool
	// do is called while the process at the point stands there, which goes on as the
	// order says that is returned; then, after that, when it goes on.
	do   func(c *cell) (order string)
	then func(c *cell)
}

// faults are all of them.
var faults = []fault{
	{name: "none", do: func(*cell) string { return orderGo }},
	{name: "kill-source", do: func(c *cell) string { c.kill(c.source); return orderGo }},
	{name: "kill-destination", do: func(c *cell) string { c.kill(c.destination); return orderGo }},
	{name: "kill-both", do: func(c *cell) string { c.kill(c.source); c.kill(c.destination); return orderGo }},
	{name: "cut-to-destination", link: true, do: func(c *cell) string { return c.cut(toDestination) }, then: (*cell).untilTold},
	{name: "cut-to-source", link: true, do: func(c *cell) string { return c.cut(toSource) }, then: (*cell).untilTold},
	{name: "cut-both", link: true, do: func(c *cell) string { return c.cut(toDestination, toSource) }, then: (*cell).untilTold},
	{name: "delay", link: true, do: (*cell).delay, then: (*cell).pastAll},
	{name: "stop-source", do: func(c *cell) string { return c.stop(c.source) }, then: func(c *cell) { c.pastAll(); c.source.cont() }},
	{name: "stop-destination", do: func(c *cell) string { return c.stop(c.destination) }, then: func(c *cell) { c.pastAll(); c.destination.cont() }},
	{name: "corrupt-to-destination", link: true, do: func(c *cell) string { c.net.corruptNext(toDestination); return orderGo }},
	{name: "corrupt-to-source", link: true, do: func(c *cell) string { c.net.corruptNext(toSource); return orderGo }},
	{name: "fsync-error", fits: journals, do: func(*cell) string { return orderUnknown }},
	{name: "disk-full", fits: fills, do: func(*cell) string { return orderFull }, then: func(c *cell) { c.pastAll(); c.standing.order(orderRoom) }},
	{name: "failure", fits: fails, do: (*cell).fail},
	{name: "lock-busy", fits: locks, do: (*cell).takeLock, then: (*cell).giveLock},
	{name: linkDown, do: (*cell).unplug, then: (*cell).untilTold},
}

// linkDown is the fault that only namespaces have.
const linkDown = "link-down"

func journals(point string) bool { return strings.Contains(point, "-journal-") }
func fails(point string) bool    { return !journals(point) && point != "destination-run-guest-after" }
func fills(point string) bool    { return journals(point) && strings.HasSuffix(point, "-before") }

// locks are the points from which on a third party could have the disk's lock.
func locks(point string) bool {
	return journals(point) || strings.Contains(point, "-locks-") || strings.Contains(point, "-send-COMMIT") || strings.Contains(point, "-send-REFUSED")
}

// place is a cell of the matrix.
type place struct {
	link, scenario, point string
	fault                 fault
}

func (p place) name() string { return p.link + "/" + p.scenario + "/" + p.point + "/" + p.fault.name }

// exists says whether a place is a cell of the matrix.
func (p place) exists() bool {
	switch {
	case p.fault.fits != nil && !p.fault.fits(p.point):
		return false
	case p.scenario == localScenario && (p.link != loopback || p.fault.link):
		return false
	case p.fault.name == linkDown:
		return p.link == namespaces
	}
	return p.link == loopback || oneIn(again, p.name())
}

func TestFaults(t *testing.T) {
	sys, err := kvm.Open("")
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	sys.Close()
	elf := kernel(t)(micro.Check(8<<20, 10<<20, 4096, micro.Forever, nil))
	all := matrix(t, elf)
	run := all
	// Who names a cell wants it.
	if os.Getenv(faultsVariable) != "all" && !strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
		run = slices.DeleteFunc(slices.Clone(all), func(p place) bool { return !oneIn(sampled, p.name()) })
	}
	// Most of the time a cell waits: more of them than there are processors go at once.
	work := make(chan place)
	var workers sync.WaitGroup
	var ran, failed atomic.Int64
	for range 4 {
		workers.Go(func() {
			for p := range work {
				ok := t.Run(p.name(), func(t *testing.T) {
					ran.Add(1)
					runCell(t, p, elf)
				})
				if !ok {
					failed.Add(1)
				}
			}
		})
	}
	for _, p := range run {
		work <- p
	}
	close(work)
	workers.Wait()
	t.Logf("%d cells, %d of them run, %d failed", len(all), ran.Load(), failed.Load())
}

// matrix is all places, from the points that the scenarios pass.
func matrix(t *testing.T, elf string) []place {
	t.Helper()
	var all []place
	var passed []string
	for _, scenario := range scenarios {
		for _, point := range probe(t, scenario, elf) {
			// What a scenario shares with those before is tested there.
			if slices.Contains(passed, point) && scenario != localScenario {
				continue
			}
			passed = append(passed, point)
			for _, link := range links {
				for _, f := range faults {
					if p := (place{link, scenario, point, f}); p.exists() {
						all = append(all, p)
					}
				}
			}
		}
	}
	for _, point := range required {
		if !slices.Contains(passed, point+"-before") || !slices.Contains(passed, point+"-after") {
			t.Errorf("no scenario comes to %s, before and after", point)
		}
	}
	return all
}

// oneIn chooses one name in so many, always the same.
func oneIn(n uint32, name string) bool {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	return h.Sum32()%n == 0
}

// probe is the migration without a fault: it returns the points, in the order in which
// they were passed first.
func probe(t *testing.T, scenario, elf string) []string {
	t.Helper()
	c := newCell(t, place{link: loopback, scenario: scenario, point: "*"}, elf, 8)
	defer c.end()
	var points []string
	c.onPoint = func(s *sideProcess, point string) {
		c.mu.Lock()
		points = append(points, point)
		c.mu.Unlock()
		s.order(orderGo)
	}
	c.begin()
	c.settle()
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.Sort(points) // the two sides take turns as they like
	return points
}

// runCell has the fault come at the point, puts everything right that an operator would,
// and looks at what has become of the guest. A migration that did not come to the point,
// because the machine is too slow for the short waits, is tried again with longer ones.
func runCell(t *testing.T, p place, elf string) {
	for slower := time.Duration(1); slower <= 64; slower *= 4 {
		c := newCell(t, p, elf, slower)
		there := c.run(p.fault)
		c.end()
		if there || t.Failed() {
			return
		}
	}
	t.Error("the migration never comes to the point")
}

// run says whether the migration came to the point.
func (c *cell) run(f fault) bool {
	reached := make(chan *sideProcess, 1)
	c.onPoint = func(s *sideProcess, _ string) { reached <- s }
	c.begin()
	there := c.comes(reached)
	if there {
		if strings.HasSuffix(c.point, "-after") {
			// What was sent before gets through.
			c.net.drain(100 * time.Millisecond)
		}
		c.standing.order(f.do(c))
		if f.then != nil {
			f.then(c)
		}
	}
	c.settle()
	if there {
		c.judge()
		c.moveAgain()
	}
	return there
}
