package stream

import (
	"math"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/godwit-vmm/godwit/memory"
)

// TestLimiter has several senders share a limit, for some seconds of a clock of their own.
func TestLimiter(t *testing.T) {
	for _, rate := range []uint64{10_000, 1_000_000, 125_000_000} {
		for _, senders := range []int{1, 4} {
			synctest.Test(t, func(t *testing.T) {
				l := NewLimiter(rate)
				time.Sleep(time.Hour) // being idle gives no right to catch up
				for _, seconds := range []float64{1, 10} {
					sent := takeFor(l, senders, time.Duration(seconds*float64(time.Second)), 256<<10)
					if got := float64(sent) / seconds / float64(rate); got < 0.95 || got > 1.05 && sent > uint64(seconds*float64(rate))+leastSlice {
						t.Errorf("%d senders sent %.3f of the limit of %d in %g s", senders, got, rate, seconds)
					}
				}
			})
		}
	}
}

// takeFor has senders take as much as they get, and returns the sum.
func takeFor(l *Limiter, senders int, d time.Duration, want int) uint64 {
	done := make(chan struct{})
	time.AfterFunc(d, func() { close(done) })
	var work sync.WaitGroup
	sums := make([]uint64, senders)
	for i := range sums {
		work.Go(func() {
			for end := time.Now().Add(d); time.Now().Before(end); {
				sums[i] += uint64(l.take(done, want))
			}
		})
	}
	work.Wait()
	var sum uint64
	for _, n := range sums {
		sum += n
	}
	return sum
}

// TestLimiterLate wakes the sender too late each time, as a busy machine does.
func TestLimiterLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 1_000_000
		l := NewLimiter(rate)
		sent, start := 0, time.Now()
		for time.Since(start) < 10*time.Second {
			l.mu.Lock()
			l.sleep(nil, 50*time.Millisecond) // a wait that ought to have been 10 ms
			l.mu.Unlock()
			for l.credit > 0 {
				sent += l.take(nil, 64<<10)
			}
		}
		if got := float64(sent) / rate / time.Since(start).Seconds(); math.Abs(got-1) > 0.05 {
			t.Errorf("%.3f of the limit was sent", got)
		}
	})
}

// TestLimiterSet changes the limit under a sender that waits.
func TestLimiterSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(1)
		l.take(nil, 1<<20) // leaves a debt of many minutes
		taken := make(chan int, 1)
		start := time.Now()
		go func() { taken <- l.take(nil, 1<<20) }()
		synctest.Wait()
		l.Set(1_000_000)
		if n := <-taken; n == 0 || time.Since(start) > time.Second {
			t.Errorf("%d bytes after %v", n, time.Since(start))
		}
		l.Set(1000)
		sent := takeFor(l, 1, 10*time.Second, 1<<20)
		if sent < 9_000 || sent > 12_000 {
			t.Errorf("%d bytes in 10 s at 1000 bytes a second", sent)
		}
		go func() { taken <- l.take(nil, 1<<20) }()
		synctest.Wait()
		l.Set(0)
		if n := <-taken; n != 1<<20 {
			t.Errorf("%d bytes without a limit", n)
		}
	})
}

func TestLimiterDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(1)
		l.take(nil, 1<<20)
		done := make(chan struct{})
		taken := make(chan int)
		go func() { taken <- l.take(done, 1<<20) }()
		synctest.Wait()
		close(done)
		if n := <-taken; n != 0 {
			t.Errorf("%d bytes after the end", n)
		}
	})
	if n := (*Limiter)(nil).take(nil, 7); n != 7 {
		t.Errorf("%d bytes without a limiter, want 7", n)
	}
}

// TestLimited limits a sender, and changes that while it sends.
func TestLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 1_000_000
		limit := NewLimiter(rate)
		near, far := net.Pipe()
		near2, far2 := net.Pipe()
		l := newLink(t, []net.Conn{near, near2}, []net.Conn{far, far2}, SenderOptions{Limit: limit})
		mem := l.src.Regions()[0].Mem
		for i := range mem {
			mem[i] = byte(i>>12) | 1
		}
		for _, rate := range []uint64{rate, 10 * rate} {
			limit.Set(rate)
			start := time.Now()
			for page := uint64(0); page < testSize/memory.PageSize; page += 256 {
				l.send(t, page, 256)
			}
			if err := l.sender.Barrier(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := testSize / time.Since(start).Seconds() / float64(rate); got < 0.95 || got > 1.05 {
				t.Errorf("pages went at %.3f of the limit of %d", got, rate)
			}
		}
		l.finish(t)
	})
}
