package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/memory"
)

// TestRestoreFloor has the C program restore a guest, and not restore it.
func TestRestoreFloor(t *testing.T) {
	needKVM(t)
	runtime.LockOSThread() // see crowd
	defer runtime.UnlockOSThread()
	e := testEnv()
	e.Dir = t.TempDir()
	floor, err := buildRestoreFloor(t.Context(), e)
	var skip *SkipError
	if errors.As(err, &skip) {
		testenv.Lacks(t, "%s", skip.Reason)
	}
	if err != nil {
		t.Fatal(err)
	}
	program, err := writeProgram(e, "waiter.elf", func(micro.Stop) ([]byte, error) { return waiter() }, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := saveWaiter(t.Context(), e, program, "snapshot", 512<<20)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if c, err := runUntilOutput(t.Context(), e.Dir, 0, floor, s.floorState, s.memory); err != nil || c.out != "." {
			t.Fatalf("it said %q: %v", c.out, err)
		}
	}
	checkCalls(t, s.floorState)
	c := &crowd{env: e, argv: func(int) []string { return []string{floor, s.floorState, s.memory, "3"} }}
	defer c.end()
	for range 3 {
		if _, err := c.add(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	private, err := c.private()
	if err != nil || len(private) != 3 || private[0] <= 0 || private[0] > 1 {
		t.Errorf("private memory %v MiB: %v", private, err)
	}
	if _, err := runProcess(t.Context(), e.Dir, 0, floor, program, s.memory); err == nil {
		t.Error("a program was taken for a state")
	}
}

// checkCalls compares the sizes of the arguments with those that the requests have in
// them; what has a list behind it has more.
func checkCalls(t *testing.T, path string) {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	ranges, calls := le.Uint32(p), le.Uint32(p[4:])
	p = p[8+16*ranges:]
	for range calls {
		request, size := le.Uint32(p), le.Uint32(p[4:])
		if want := request >> 16 & 0x3fff; size != want && (want != 8 || size < want) {
			t.Errorf("request %#x has an argument of %d bytes, want %d", request, size, want)
		}
		p = p[16+(size+7)/8*8:]
	}
	if len(p) != 0 {
		t.Errorf("%d bytes behind the calls", len(p))
	}
}

// TestPacedWriter looks whether the guest keeps to its pace, or is slower on a host
// that is busy, and sees that it stands still.
func TestPacedWriter(t *testing.T) {
	needKVM(t)
	e := testEnv()
	e.Dir = t.TempDir()
	l, _, err := startLive(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	defer l.guest.close()
	before, began := l.word(pacedPages), time.Now()
	if err := poll(t.Context(), readyLimit, func() (bool, error) { return l.word(pacedPages) > before+5000, nil }); err != nil {
		t.Fatal(err)
	}
	wrote := float64(l.word(pacedPages)-before) * memory.PageSize
	if rate, most := wrote/time.Since(began).Seconds(), 1.1*liveRate+liveSlack*liveRate/1e3; rate > most {
		t.Errorf("%.0f bytes a second, want at most %.0f", rate, most)
	}
	const still = 50 * time.Millisecond
	if err := l.guest.Pause(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(still)
	pages := l.word(pacedPages)
	if err := errors.Join(l.setWord(pacedStall, 0), l.guest.Resume()); err != nil {
		t.Fatal(err)
	}
	if err := poll(t.Context(), readyLimit, func() (bool, error) { return l.word(pacedPages) > pages, nil }); err != nil {
		t.Fatal(err)
	}
	if stall := float64(l.word(pacedStall)) / l.khz; stall < milliseconds(still) {
		t.Errorf("the guest stood still for %v and saw %.1f ms", still, stall)
	}
}

func TestCrowd(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	e := testEnv()
	e.Dir = t.TempDir()
	script := "echo ready >&3; exec sleep 1000"
	c := &crowd{env: e, argv: func(int) []string { return []string{"/bin/sh", "-c", script} }}
	for range 2 {
		if _, err := c.add(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	script = "echo no such thing >&2; exit 1"
	if _, err := c.add(t.Context()); err == nil || !strings.Contains(err.Error(), "number 3 did not become ready") || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("error %v", err)
	}
	script = "exec sleep 1000"
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := c.add(ctx); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v of one that was broken off", err)
	}
	all := c.all
	c.end()
	for _, cmd := range all {
		if cmd.ProcessState == nil {
			t.Errorf("process %d was left", cmd.Process.Pid)
		}
	}
}

func TestReadSizes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sizes")
	if err := os.WriteFile(path, []byte("Rss:  12 kB\nPss:   34 kB\nPss_File: 5 kB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readSizes(path, "Pss", "Pss_File", "Rss")
	if err != nil || got[0] != 34 || got[1] != 5 || got[2] != 12 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := readSizes(path, "ss"); err == nil {
		t.Error("part of a name was taken for a field")
	}
}

func TestSnapshotGoals(t *testing.T) {
	m := &Metric{Unit: "ms", Series: []*Series{
		{Contestant: "floor", Samples: []float64{1, 2, 3}},
		{Contestant: "small", Samples: []float64{3, 5, 7}}, // +2, +3, +4
		{Contestant: "large floor", Samples: []float64{5, 5, 5}},
		{Contestant: "large", Samples: []float64{8, 8.5, 9}}, // +3, +3.5, +4
	}}
	excess, ok := sameExcess("large", "large floor", "small", "floor")(m)
	if !ok || excess.Value != 0.5 || excess.Limit != 1 || !excess.Met {
		t.Errorf("%+v, %v", excess, ok)
	}
	if _, ok := sameExcess("large", "none", "small", "floor")(m); ok {
		t.Error("a goal about nobody")
	}
	for _, test := range []struct {
		limit float64
		met   bool
	}{{6.9, false}, {7, true}} {
		target, ok := atMostQuantile("small", 0.99, test.limit)(m)
		if !ok || target.Met != test.met {
			t.Errorf("limit %g: %+v, %v", test.limit, target, ok)
		}
	}
}

// TestSnapshotCases runs the cases briefly. Targets may be missed.
func TestSnapshotCases(t *testing.T) {
	godwit := builtGodwit(t)
	report, err := Run(t.Context(), Options{Godwit: godwit, Quick: true, Only: []string{"restore", "snapshot-live", "clone"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range report.Cases {
		if c.Error != "" || c.Skipped != "" {
			t.Errorf("%s: %s%s", c.Name, c.Error, c.Skipped)
		} else if len(c.Metrics[0].Targets) == 0 {
			t.Errorf("%s has no target", c.Name)
		}
	}
	var table strings.Builder
	if err := report.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + table.String())
}
