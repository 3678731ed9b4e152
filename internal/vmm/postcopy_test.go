package vmm

import (
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/live"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// eager is a guest that changes memory faster than it is copied.
func eager(t *testing.T) *fixture {
	t.Helper()
	needUserfaultfd(t)
	f := newVM(t, kernel(t)(micro.Check(0x40_0000, 0x40_0000+16<<20, 512, micro.Forever, nil)), nil)
	f.must(f.Start())
	f.runs()
	return f
}

// slowly is a migration by post-copy at so many bytes a second.
func slowly(h, from *host, rate uint64) MigrateRequest {
	return MigrateRequest{
		Addr: h.addr, Journal: from.journal, Limit: stream.NewLimiter(rate),
		Policy: stream.Policy{Downtime: 10 * time.Millisecond, PostCopy: stream.PostCopyAuto},
	}
}

// complete waits until all of the guest's memory is there.
func (f *fixture) complete() {
	f.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		var pager memory.Pager
		f.must(f.Use(func(m *machine.Machine) error {
			pager = m.Memory().Pager()
			return nil
		}))
		if pager == memory.NoPager {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatal("the memory is never complete")
		}
	}
}

// TestPostCopy moves a guest to and fro that writes faster than its memory is copied.
func TestPostCopy(t *testing.T) {
	here, there := newHost(t), newHost(t)
	f := eager(t)
	for range 2 {
		rounds := f.rounds()
		report, err := f.Migrate(t.Context(), slowly(there, here, 40<<20))
		if err != nil {
			t.Fatal(err)
		}
		if report.PostCopy == nil || report.PostCopy.Asked+report.PostCopy.Pushed == 0 {
			t.Fatalf("no memory followed: %+v", report)
		}
		t.Logf("downtime %+v, post-copy %+v", report.Downtime, *report.PostCopy)
		<-f.Done()
		f = <-there.came
		f.complete()
		f.runs()
		if f.rounds() < rounds {
			t.Errorf("the guest's counter went from %d back to %d", rounds, f.rounds())
		}
		f.sound()
		if err := <-there.ended; err != nil {
			t.Error(err)
		}
		here, there = there, here
	}
}

// nowhere is where nobody listens.
const nowhere = "127.0.0.1:1"

// reset ends all connections.
func (p *proxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for w := range p.wires {
		p.drop(w)
	}
}

// halfway moves a guest by post-copy, where next to nothing is pushed after the handover,
// and calls at when the guest runs there. It returns that guest, and what Migrate will
// return.
func halfway(t *testing.T, f *fixture, p *proxy, at func(l *stream.Limiter)) (*fixture, <-chan error) {
	t.Helper()
	here, there := newHost(t), newHost(t)
	p.to(there.addr)
	l := stream.NewLimiter(0)
	once := sync.OnceFunc(func() { at(l) })
	moved := make(chan error, 1)
	go func() {
		_, err := f.Migrate(t.Context(), MigrateRequest{
			Addr: p.addr(), Journal: here.journal, Limit: l, Policy: stream.Policy{PostCopy: stream.PostCopyNow},
			Progress: func(p live.Progress) {
				switch p.Phase {
				case live.PhaseStop:
					l.Set(64 << 10)
				case live.PhasePostCopy:
					once()
				}
			},
		})
		moved <- err
	}()
	select {
	case g := <-there.came:
		return g, moved
	case err := <-moved:
		t.Fatal(err)
		return nil, nil
	}
}

// large is a guest whose memory takes a while to be asked for, page by page.
func large(t *testing.T) *fixture {
	t.Helper()
	needUserfaultfd(t)
	f := newVM(t, kernel(t)(micro.Check(0x40_0000, 0x40_0000+48<<20, 4096, micro.Forever, nil)), nil)
	f.must(f.Configure(func(c *Config) error { c.CPUs, c.Memory = 2, 64<<20; return nil }))
	f.must(f.Start())
	f.runs()
	return f
}

// TestPostCopyCut loses the link twice while the guest needs its memory, and collects
// garbage all the time, which nobody who waits for a page may hold up.
func TestPostCopyCut(t *testing.T) {
	f, p := large(t), newProxy(t)
	stop, collected := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(collected)
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	}()
	defer func() {
		close(stop)
		<-collected
	}()
	limits := make(chan *stream.Limiter, 1)
	target := make(chan string, 1)
	g, moved := halfway(t, f, p, func(l *stream.Limiter) {
		p.mu.Lock()
		target <- p.target
		p.mu.Unlock()
		p.to(nowhere)
		p.reset()
		limits <- l
	})
	l, addr := <-limits, <-target
	g.hears(EventTrouble, 1)
	p.to(addr)
	l.Set(4 << 20)
	g.runs()
	p.to(nowhere)
	p.reset()
	p.to(addr)
	l.Set(0)
	if err := <-moved; err != nil {
		t.Fatal(err)
	}
	g.complete()
	g.sound()
}

// TestPostCopySourceGone ends the source before the destination has all.
func TestPostCopySourceGone(t *testing.T) {
	f, p := large(t), newProxy(t)
	why := errors.New("the power is off")
	g, moved := halfway(t, f, p, func(*stream.Limiter) { f.Kill(why) })
	if err := <-moved; !errors.Is(err, live.ErrLost) {
		t.Errorf("the source has %v", err)
	}
	<-g.Done()
	if err := g.Cause(); !errors.Is(err, stream.ErrPagesLost) || !strings.Contains(err.Error(), "the power is off") {
		t.Errorf("the guest ended for %v", err)
	}
	if outcome, err := g.Wait(); outcome != machine.Killed || err != nil {
		t.Errorf("%v, %v", outcome, err)
	}
	g.hears(EventTrouble, 1)
}

// TestPostCopyKilled kills guests that wait for memory, with and without a link.
func TestPostCopyKilled(t *testing.T) {
	for _, cut := range []bool{false, true} {
		f, p := large(t), newProxy(t)
		there := make(chan string, 1)
		g, moved := halfway(t, f, p, func(*stream.Limiter) {
			p.mu.Lock()
			there <- p.target
			p.mu.Unlock()
			if cut {
				p.to(nowhere)
				p.reset()
			}
		})
		addr := <-there
		if cut {
			g.hears(EventTrouble, 1)
		}
		g.Kill(nil)
		<-g.Done()
		p.to(addr)
		if err := <-moved; err != nil && !errors.Is(err, live.ErrLost) {
			t.Errorf("the source has %v", err)
		}
		<-f.Done()
	}
}
