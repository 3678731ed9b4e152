package virtio

import "testing"

func TestPollerStopsInVain(t *testing.T) {
	var p Poller
	looked := 0
	nothing := func() bool { looked++; return false }
	polls := 0
	for range 10_000 {
		before := looked
		if p.Poll(nothing) {
			t.Fatal("found something")
		}
		if looked != before {
			polls++
		}
	}
	if most := 10_000/pollTrialsOff + 10; polls > most {
		t.Errorf("%d of 10000 polls in vain looked, want at most %d", polls, most)
	}
}

func TestPollerFindsOutThatItPays(t *testing.T) {
	var p Poller
	for range 1000 {
		p.Poll(func() bool { return false })
	}
	tries := 0
	for !p.Poll(func() bool { return true }) {
		if tries++; tries >= pollTrialsOff {
			t.Fatalf("no trial in %d polls", tries)
		}
	}
	for i := range pollTrialWon {
		looked := false
		p.Poll(func() bool { looked = true; return false })
		if !looked {
			t.Fatalf("gave up after %d polls in vain, right after one that found something", i)
		}
	}
}

func TestPollerLooksAgain(t *testing.T) {
	var p Poller
	n := 0
	if !p.Poll(func() bool { n++; return n == 10 }) || n != 10 {
		t.Errorf("looked %d times, want 10", n)
	}
}
