package machine

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/kvm"
)

// TestClockAdvances restores a guest that was saved an hour ago, as its state says: its
// clocks go on from where they were, or from an hour later.
func TestClockAdvances(t *testing.T) {
	// However slow this machine is, it does not take an hour.
	const ago, slack = time.Hour, 30 * time.Minute
	sys := openKVM(t)
	c := Config{CPUs: 2, Memory: 8 << 20, Kernel: program(t)(micro.Spin())}
	m, err := New(sys, c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	c = Config{CPUs: 2, Memory: 8 << 20}
	for name, tt := range map[string]struct {
		advance bool
		passed  time.Duration // on the host's wall clock
		want    time.Duration // on the guest's
	}{
		"goes on":        {false, ago, 0},
		"moved on":       {true, ago, ago},
		"clock set back": {true, -ago, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c.Saved = saved(t, m)
			s := of(c.Saved)
			if since := time.Since(time.Unix(0, int64(s.Clock.Realtime))); since < 0 || since > slack {
				t.Fatalf("saved %v ago", since)
			}
			s.Clock.Realtime -= uint64(tt.passed)
			if tt.advance {
				s.AdvanceClock()
			}
			before, tsc := s.Clock.Clock, tscOf(t, s)
			restored, err := New(sys, c)
			if err != nil {
				t.Fatal(err)
			}
			defer restored.Close()
			now, err := restored.Save()
			if err != nil {
				t.Fatal(err)
			}
			moved := func(what string, by time.Duration) {
				t.Helper()
				// KVM rounds where it converts between the two.
				if by < tt.want-time.Millisecond || by > tt.want+slack {
					t.Errorf("%s has moved on by %v, want %v", what, by, tt.want)
				}
			}
			moved("kvmclock", time.Duration(now.Clock.Clock-before))
			// What KVM was told: one without hardware lets its guests see the host's.
			ticks := tscOf(t, s) - tsc
			moved("the TSC", time.Duration(float64(ticks)/float64(s.CPUs[0].TSCkHz)*float64(time.Millisecond)))
		})
	}
}

func tscOf(t *testing.T, s *State) uint64 {
	t.Helper()
	const msrTSC = 0x10
	for _, e := range s.CPUs[len(s.CPUs)-1].MSRs {
		if e.Index == msrTSC {
			return e.Data
		}
	}
	t.Fatal("no TSC is saved")
	return 0
}

// TestClockUnknown has states that do not say when they were saved, which only matters
// if it is asked for, and whose values are anything.
func TestClockUnknown(t *testing.T) {
	s := &State{Clock: kvm.ClockData{Clock: 1}}
	if err := s.moveClock(time.Now()); err != nil {
		t.Error(err)
	}
	s.AdvanceClock()
	for _, realtime := range []uint64{0, math.MaxUint64} {
		s.Clock.Realtime = realtime
		if err := s.moveClock(time.Now()); err == nil || !strings.Contains(err.Error(), "clock_realtime") {
			t.Errorf("saved at %d: %v", realtime, err)
		}
	}
	s.Clock.Realtime = 1
	now := time.Unix(1000, 0)
	for range 2 { // the second time nothing has passed
		if err := s.moveClock(now); err != nil || s.Clock.Clock != 1000e9 {
			t.Errorf("kvmclock %d, %v", s.Clock.Clock, err)
		}
	}
}
