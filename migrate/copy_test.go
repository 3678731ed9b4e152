package migrate

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/godwit-vmm/godwit/memory"
)

func TestEnough(t *testing.T) {
	l := Limits{Rest: 1000, Rounds: 5}
	for _, test := range []struct {
		name string
		p    Progress
		want bool
	}{
		{"little left", Progress{Round: 1, Dirty: 1000, Before: 1e6}, true},
		{"much left", Progress{Round: 1, Dirty: 1001, Before: 1e6}, false},
		{"all left after the first round", Progress{Round: 1, Dirty: 1e6, Before: 1e6}, false},
		{"half left", Progress{Round: 2, Dirty: 5e5, Before: 1e6}, false},
		{"three quarters left", Progress{Round: 2, Dirty: 75e4, Before: 1e6}, false},
		{"more than that left", Progress{Round: 2, Dirty: 75e4 + 1, Before: 1e6}, true},
		{"growing", Progress{Round: 3, Dirty: 2e6, Before: 1e6}, true},
		{"many rounds", Progress{Round: 5, Dirty: 5e5, Before: 1e6}, true},
	} {
		if got := l.enough(test.p); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// TestNextRun compares with looking at each bit.
func TestNextRun(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		words := make([]uint64, 1+rnd.IntN(4))
		for i := range words {
			// Long runs, short ones and none.
			words[i] = [](func() uint64){
				func() uint64 { return 0 }, func() uint64 { return ^uint64(0) },
				rnd.Uint64, func() uint64 { return rnd.Uint64() & rnd.Uint64() & rnd.Uint64() },
			}[rnd.IntN(4)]()
		}
		end := uint64(len(words)*64 - rnd.IntN(64))
		most := uint64(1 + rnd.IntN(100))
		got := make([]bool, end)
		for at := uint64(0); ; {
			first, n := nextRun(words, at, end, most)
			if n == 0 {
				break
			}
			if first < at || n > most || first+n > end {
				t.Fatalf("run of %d from %d, after %d and before %d", n, first, at, end)
			}
			for i := first; i < first+n; i++ {
				got[i] = true
			}
			at = first + n
		}
		for i := range got {
			if want := words[i/64]>>(i%64)&1 == 1; got[i] != want {
				t.Fatalf("bit %d of %x is %v in the runs", i, words, got[i])
			}
		}
	}
}

// writingGuest is memory to which a goroutine writes, with a log of its own.
type writingGuest struct {
	mem *memory.Guest

	mu     sync.Mutex
	all    bool // the first fetch
	paused bool
	resume sync.Cond
	last   []byte // the memory at the pause
	pauses int
}

func newWritingGuest(t *testing.T) *writingGuest {
	mem, err := memory.New(memory.Options{Size: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	g := &writingGuest{mem: mem}
	g.resume.L = &g.mu
	return g
}

// write changes pages until the context ends, each under the lock as a processor
// would write between two fetches of the log.
func (g *writingGuest) write(ctx context.Context) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for ctx.Err() == nil {
		g.mu.Lock()
		for g.paused {
			g.resume.Wait()
		}
		gpa := memory.GPA(rnd.Uint64N(g.mem.Size() - 8))
		if err := g.mem.PutUint64(gpa, rnd.Uint64()); err != nil {
			panic(err)
		}
		g.mu.Unlock()
	}
}

func (g *writingGuest) Memory() *memory.Guest { return g.mem }

func (g *writingGuest) StartDirtyLog() error {
	g.all = true
	return nil
}

func (g *writingGuest) FetchDirty(dst []uint64) error {
	if g.all {
		g.all = false
		for i := range dst {
			dst[i] = ^uint64(0)
		}
	}
	g.mem.Dirty().Drain(dst)
	return nil
}

func (g *writingGuest) Pause() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.paused = true
	g.pauses++
	g.last = slices.Clone(g.mem.Regions()[0].Mem)
}

func (g *writingGuest) Resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.paused = false
	g.resume.Broadcast()
}

// pages is a copy of the memory. It takes its time, so that there are rounds.
type pages struct {
	mem  []byte
	fail error
}

func (p *pages) WritePages(offset int64, b []byte) error {
	copy(p.mem[offset:], b)
	return p.fail
}

func TestCopy(t *testing.T) {
	g := newWritingGuest(t)
	defer g.mem.Close()
	ctx, stop := context.WithCancel(t.Context())
	var writer sync.WaitGroup
	writer.Go(func() { g.write(ctx) })
	defer writer.Wait()
	defer stop()
	to := &pages{mem: make([]byte, g.mem.Size())}
	saved := 0
	report, err := Copy(t.Context(), g, to, Options{Limits: Limits{Rest: 1 << 20, Rounds: 20}}, func() error {
		saved++
		if !g.paused {
			t.Error("the state is saved of a guest that runs")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if g.pauses != 1 || saved != 1 || g.paused {
		t.Errorf("%d pauses, %d times saved, paused %v", g.pauses, saved, g.paused)
	}
	if !bytes.Equal(to.mem, g.last) {
		t.Error("the copy is not what the memory was at the pause")
	}
	if report.Rounds < 1 || report.Bytes == 0 || report.Pause <= 0 || report.Pause > report.Total {
		t.Errorf("report %+v", report)
	}
}

// TestCopyChanged copies what has changed, and leaves the guest paused.
func TestCopyChanged(t *testing.T) {
	g := newWritingGuest(t)
	defer g.mem.Close()
	write := func(pages ...uint64) {
		for _, page := range pages {
			if err := g.mem.PutUint64(memory.GPA(page*memory.PageSize), page); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(1, 2, 3)
	clear := make([]uint64, 64)
	g.mem.Dirty().Drain(clear)
	write(100, 200)
	changed := make([]uint64, 64)
	changed[0] = 1 << 3 // of before
	to := &pages{mem: make([]byte, g.mem.Size())}
	report, err := Copy(t.Context(), g, to, Options{Limits: DefaultLimits, Changed: changed, Stay: true}, func() error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if !g.paused || report.Bytes != 3*memory.PageSize {
		t.Errorf("paused %v, %d bytes copied, want 3 pages", g.paused, report.Bytes)
	}
	for page, want := range map[int]byte{1: 0, 2: 0, 3: 3, 100: 100, 200: 200} {
		if got := to.mem[page*memory.PageSize]; got != want {
			t.Errorf("page %d begins with %d, want %d", page, got, want)
		}
	}
}

// TestCopyFails has the guest run on when something goes wrong.
func TestCopyFails(t *testing.T) {
	broken := errors.New("broken")
	cancelled, cancel := context.WithCancelCause(t.Context())
	cancel(broken)
	for _, test := range []struct {
		name  string
		ctx   context.Context
		write error
		save  error
	}{
		{"write", t.Context(), broken, nil},
		{"save", t.Context(), nil, broken},
		{"cancelled", cancelled, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newWritingGuest(t)
			defer g.mem.Close()
			if err := g.mem.PutUint64(0, 1); err != nil {
				t.Fatal(err)
			}
			to := &pages{mem: make([]byte, g.mem.Size()), fail: test.write}
			_, err := Copy(test.ctx, g, to, Options{Limits: DefaultLimits}, func() error { return test.save })
			if !errors.Is(err, broken) || g.paused {
				t.Errorf("%v, paused %v", err, g.paused)
			}
		})
	}
}

// TestStash puts more aside than there is room for.
func TestStash(t *testing.T) {
	const page = memory.PageSize
	direct := &pages{mem: make([]byte, 8*page)}
	s := newStash(3 * page)
	take := s.take(direct)
	want := make([]byte, 8*page)
	for i := range 8 {
		p := bytes.Repeat([]byte{byte(i + 1)}, page)
		copy(want[i*page:], p)
		if err := take(int64(i*page), p); err != nil {
			t.Fatal(err)
		}
		clear(p) // the guest goes on
	}
	if bytes.Equal(direct.mem, want) {
		t.Error("nothing was put aside")
	}
	if err := s.flush(direct); err != nil || !bytes.Equal(direct.mem, want) {
		t.Errorf("after the flush: %v, equal %v", err, bytes.Equal(direct.mem, want))
	}
}
