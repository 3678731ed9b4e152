package limit

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// clock is a source of time that the test moves.
type clock struct{ at time.Time }

func newClock() *clock { return &clock{time.Unix(1000, 0)} }

func (c *clock) now() time.Time { return c.at }

func newLimiter(t *testing.T, c Config, k *clock) *Limiter {
	t.Helper()
	l, err := New(c, k.now)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// run takes requests of n bytes, waiting as told, until the time is over, and
// returns how many went through.
func run(l *Limiter, k *clock, n uint64, d time.Duration) (requests uint64) {
	end := k.at.Add(d)
	for {
		wait := l.Take(n, 1)
		if wait == 0 {
			requests++
			continue
		}
		if k.at.Add(wait).After(end) {
			k.at = end
			return requests
		}
		k.at = k.at.Add(wait)
	}
}

func TestLongRunRate(t *testing.T) {
	for _, test := range []struct {
		name   string
		config Config
		bytes  uint64
		want   uint64 // requests in 100 seconds
	}{
		{"operations", Config{Operations: Rate{PerSecond: 1000, Burst: 1}}, 4096, 100_000},
		{"bandwidth", Config{Bandwidth: Rate{PerSecond: 1 << 20, Burst: 4096}}, 4096, 25_600},
		{"the lower of both", Config{Bandwidth: Rate{PerSecond: 1 << 20, Burst: 4096}, Operations: Rate{PerSecond: 100, Burst: 1}}, 4096, 10_000},
		{"requests larger than the burst", Config{Bandwidth: Rate{PerSecond: 1 << 20, Burst: 4096}}, 1 << 20, 100},
		{"a rate that does not divide a second", Config{Operations: Rate{PerSecond: 7, Burst: 1}}, 0, 700},
		{"more than one in a nanosecond", Config{Bandwidth: Rate{PerSecond: 3_000_000_000, Burst: 1 << 20}}, 1 << 20, 300_000_000_000 / (1 << 20)},
		{"slower than a second each", Config{Bandwidth: Rate{PerSecond: 1, Burst: 1}}, 50, 2},
		{"default burst", Config{Operations: Rate{PerSecond: 1000}}, 0, 100_100},
	} {
		t.Run(test.name, func(t *testing.T) {
			k := newClock()
			l := newLimiter(t, test.config, k)
			got := run(l, k, test.bytes, 100*time.Second)
			if slack := max(2, test.want/1000); got < test.want-slack || got > test.want+slack {
				t.Errorf("%d requests in 100 s, want %d", got, test.want)
			}
		})
	}
}

func TestBursts(t *testing.T) {
	k := newClock()
	l := newLimiter(t, Config{Operations: Rate{PerSecond: 10, Burst: 5, OneTime: 7}}, k)
	if got := run(l, k, 0, 0); got != 12 {
		t.Errorf("%d requests at the start, want burst and additional burst, 12", got)
	}
	k.at = k.at.Add(time.Hour)
	if got := run(l, k, 0, 0); got != 5 {
		t.Errorf("%d requests after an hour, want the burst only, 5", got)
	}
	if wait := l.Take(0, 1); wait != 100*time.Millisecond {
		t.Errorf("empty bucket of 10 a second: wait %v, want 100ms", wait)
	}
	k.at = k.at.Add(99 * time.Millisecond)
	if wait := l.Take(0, 1); wait != time.Millisecond {
		t.Errorf("99 ms later: wait %v, want 1ms", wait)
	}
}

// TestWaitsAreLong tests that a high rate does not need a timer a request.
func TestWaitsAreLong(t *testing.T) {
	k := newClock()
	l := newLimiter(t, Config{Operations: Rate{PerSecond: 100_000, Burst: 1000}}, k)
	run(l, k, 0, 0)
	if wait := l.Take(0, 1); wait != patience {
		t.Errorf("wait %v, want %v", wait, patience)
	}
}

func TestNothingIsTakenWhileWaiting(t *testing.T) {
	k := newClock()
	l := newLimiter(t, Config{Bandwidth: Rate{PerSecond: 100, Burst: 100}, Operations: Rate{PerSecond: 1, Burst: 1}}, k)
	l.Take(10, 1)
	before := l.Save()
	for range 3 {
		if l.Take(10, 1) == 0 {
			t.Fatal("second operation in the same second went through")
		}
	}
	if after := l.Save(); after != before {
		t.Errorf("after waiting: %+v, before: %+v", after, before)
	}
}

func TestClockGoingBack(t *testing.T) {
	k := newClock()
	l := newLimiter(t, Config{Operations: Rate{PerSecond: 1, Burst: 1}}, k)
	l.Take(0, 1)
	k.at = k.at.Add(-time.Hour)
	if wait := l.Take(0, 1); wait <= 0 {
		t.Errorf("wait %v", wait)
	}
	k.at = k.at.Add(time.Hour + time.Second)
	if wait := l.Take(0, 1); wait != 0 {
		t.Errorf("a second later: wait %v, want none", wait)
	}
}

func TestNoLimits(t *testing.T) {
	l, err := New(Config{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if wait := l.Take(math.MaxUint64, math.MaxUint64); wait != 0 {
		t.Errorf("wait %v, want none", wait)
	}
	if err := l.Restore(l.Save()); err != nil {
		t.Error(err)
	}
}

func TestChange(t *testing.T) {
	k := newClock()
	l := newLimiter(t, Config{}, k)
	l.Change(Change{Operations: &Rate{PerSecond: 10, Burst: 5}})
	if got := run(l, k, 0, 0); got != 5 {
		t.Errorf("%d requests after a limit came, want its burst, 5", got)
	}
	l.Change(Change{Bandwidth: &Rate{PerSecond: 1 << 30}})
	if wait := l.Take(1, 1); wait != 100*time.Millisecond {
		t.Errorf("after a change of the other limit: wait %v, want 100ms as before", wait)
	}
	l.Change(Change{Operations: &Rate{PerSecond: 10, Burst: 3}})
	if got := run(l, k, 1, 0); got != 3 {
		t.Errorf("%d requests after another limit came, want its burst, 3", got)
	}
	l.Change(Change{Bandwidth: &Rate{}, Operations: &Rate{}})
	if wait := l.Take(math.MaxUint64, 1); wait != 0 {
		t.Errorf("wait %v with no limits any more", wait)
	}
	if err := (Change{Operations: &Rate{Burst: 1}}).Check(); err == nil {
		t.Error("a burst without a rate went through")
	}
}

func TestConfigRefused(t *testing.T) {
	for _, test := range []struct {
		config Config
		want   string
	}{
		{Config{Bandwidth: Rate{Burst: 1}}, "bandwidth limit: "},
		{Config{Operations: Rate{OneTime: 1}}, "has a burst but no rate"},
		{Config{Operations: Rate{PerSecond: MaxRate + 1}}, "larger than"},
		{Config{Operations: Rate{PerSecond: 1, Burst: math.MaxUint64}}, "larger than"},
	} {
		if _, err := New(test.config, nil); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("New(%+v) = %v, want %q in it", test.config, err, test.want)
		}
	}
}

// TestExtremes tests that the largest numbers do not overflow.
func TestExtremes(t *testing.T) {
	most := Rate{PerSecond: MaxRate, Burst: MaxRate, OneTime: MaxRate}
	k := newClock()
	l := newLimiter(t, Config{Bandwidth: most, Operations: Rate{PerSecond: 1, Burst: MaxRate, OneTime: MaxRate}}, k)
	for range 5 {
		l.Take(math.MaxUint64, math.MaxUint64)
	}
	if wait := l.Take(1, 1); wait <= 0 {
		t.Errorf("wait %v after taking all there is", wait)
	}
	k.at = k.at.Add(math.MaxInt64)
	if s := l.Save(); s.Bandwidth.Tokens != MaxRate {
		t.Errorf("bandwidth after 292 years: %d tokens, want %d", s.Bandwidth.Tokens, int64(MaxRate))
	}
}

func TestSaveRestore(t *testing.T) {
	c := Config{Bandwidth: Rate{PerSecond: 1000, Burst: 500, OneTime: 5000}, Operations: Rate{PerSecond: 10, Burst: 3}}
	k := newClock()
	l := newLimiter(t, c, k)
	l.Take(2000, 1)
	l.Take(5000, 1)
	data, err := json.Marshal(l.Save())
	if err != nil {
		t.Fatal(err)
	}
	var s State
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	k.at = k.at.Add(time.Hour)
	other := newLimiter(t, c, k)
	if err := other.Restore(s); err != nil {
		t.Fatal(err)
	}
	if got := other.Save(); got != s {
		t.Errorf("restored %+v, saved %+v", got, s)
	}
	small := newLimiter(t, Config{Operations: Rate{PerSecond: 1, Burst: 1}}, k)
	if err := small.Restore(s); err != nil {
		t.Fatal(err)
	}
	if got := run(small, k, 0, 0); got != 1 {
		t.Errorf("%d requests with a smaller burst, want 1", got)
	}
}

func TestRestoreRefuses(t *testing.T) {
	l := newLimiter(t, Config{Operations: Rate{PerSecond: 1}}, newClock())
	before := l.Save()
	for _, s := range []State{
		{},
		{Version: 2},
		{Version: 1, Operations: BucketState{Tokens: math.MinInt64}},
		{Version: 1, Bandwidth: BucketState{OneTime: math.MaxUint64}},
	} {
		if err := l.Restore(s); err == nil {
			t.Errorf("Restore(%+v) went through", s)
		}
	}
	if after := l.Save(); after != before {
		t.Errorf("state changed from %+v to %+v", before, after)
	}
}

func TestTimer(t *testing.T) {
	timer, err := NewTimer()
	if err != nil {
		t.Fatal(err)
	}
	defer timer.Close()
	poll := func(timeout int) int {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(timer.FD()), Events: unix.POLLIN}}, timeout)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	timer.Set(time.Hour)
	if poll(0) != 0 {
		t.Error("went off an hour early")
	}
	timer.Set(0)
	if poll(10_000) != 1 {
		t.Error("did not go off")
	}
	timer.Set(time.Hour)
	if poll(0) != 0 {
		t.Error("still readable after it was set again")
	}
}

func BenchmarkTake(b *testing.B) {
	l, err := New(Config{Bandwidth: Rate{PerSecond: MaxRate}, Operations: Rate{PerSecond: MaxRate}}, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		l.Take(4096, 1)
	}
}
