package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestClone makes guests of a saved one. One whose name is taken is named, with the
// reason, and the others are there.
func TestClone(t *testing.T) {
	s := newSite(t)
	s.boot("web")
	path := filepath.Join(t.TempDir(), "saved")
	s.must("snapshot", "web", path)
	made := strings.Fields(s.must("clone", path, "--allow-software-kvm", "--count", "3"))
	if want := []string{"web-1", "web-2", "web-3"}; !slices.Equal(made, want) {
		t.Fatalf("made %q, want %q", made, want)
	}
	for _, name := range made {
		if g := s.state(name); g == nil || g.State != "running" {
			t.Errorf("%s is %+v", name, g)
		}
	}
	s.sound("web-2")
	s.must("kill", "web-3")
	r := s.run("clone", path, "--allow-software-kvm", "--paused", "--count", "3")
	if r.status != exitFailed || r.stdout != "web-3\n" || strings.Contains(r.stderr, "web-3") {
		t.Errorf("%+v, want web-3 alone", r)
	}
	for _, name := range made[:2] {
		if !strings.Contains(r.stderr, "clone "+name+": ") || !strings.Contains(r.stderr, "is running already") {
			t.Errorf("%s: it said %q", name, r.stderr)
		}
	}
	if g := s.state("web-3"); g == nil || g.State != "paused" {
		t.Errorf("web-3 is %+v", g)
	}
	// A guest without an agent is never up.
	s.refuses("clone late-1: the guest was not up within 100ms", "clone", path, "--allow-software-kvm", "--wait", "--wait-timeout", "100ms", "--name", "late")
	if g := s.state("late-1"); g != nil {
		t.Errorf("a guest that was late is %+v", g)
	}
}
