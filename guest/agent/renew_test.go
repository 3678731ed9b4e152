package agent

import (
	"bytes"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// TestRenew is what a host does with a guest that it has restored.
func TestRenew(t *testing.T) {
	near, far := net.Pipe()
	var clock time.Time
	var seeds [][]byte
	server := &Server{
		Version: "test", Reaper: NewReaper(),
		SetTime: func(to time.Time) error { clock = to; return nil },
		Reseed:  func(seed []byte) error { seeds = append(seeds, bytes.Clone(seed)); return nil },
	}
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(far) }()
	c := dialTest(t, near)
	now := time.Unix(1_800_000_000, 12345)
	if err := c.SetTime(testContext(t), now); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Reseed(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	far.Close()
	<-done
	if !clock.Equal(now) {
		t.Errorf("the clock was set to %v, want %v", clock, now)
	}
	if len(seeds) != 2 || len(seeds[0]) != seedSize || bytes.Equal(seeds[0], seeds[1]) {
		t.Errorf("seeds %x", seeds)
	}
}

// TestRenewRefused: not every system may change these.
func TestRenewRefused(t *testing.T) {
	c := connect(t)
	if err := c.SetTime(testContext(t), time.Now()); err == nil || !strings.Contains(err.Error(), "does not set the clock") {
		t.Error(err)
	}
	if err := c.Reseed(testContext(t)); err == nil || !strings.Contains(err.Error(), "does not reseed") {
		t.Error(err)
	}
}

func TestReseed(t *testing.T) {
	if err := Reseed([]byte("some more noise")); err != nil && !os.IsPermission(err) {
		t.Error(err)
	}
}
