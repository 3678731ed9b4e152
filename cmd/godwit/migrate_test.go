package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/migrate/live"
)

// slow has a migration of a guest of boot never end.
var slow = []string{"--bandwidth", "1M", "--downtime", "1ms", "--json"}

// TestMigrate moves a guest there and back: its memory is as it was, and both processes
// that it leaves end well.
func TestMigrate(t *testing.T) {
	here, there := newSite(t), newSite(t)
	here.boot("web", "--vsock", "off")
	was := here.sound("web")
	first := there.receive()
	out := here.must("migrate", "web", first.addr, "--downtime", "2s")
	if !strings.HasPrefix(out, "web moved to "+first.addr) || !strings.Contains(out, "it stood still for") {
		t.Errorf("it says %q", out)
	}
	if now := there.sound("web"); now < was {
		t.Errorf("its counter went from %d back to %d", was, now)
	}
	here.await("the process here ends", func() bool { return here.state("web") == nil })
	here.refuses("godwit migration resolve", "boot", "--allow-software-kvm", "--detach", "--kernel", os.Args[0], "--name", "web")
	for s, want := range map[*site]string{here: "there", there: "here"} {
		if got := s.migration("web"); got.Owner != want || got.InDoubt {
			t.Errorf("the migration: %+v, want the owner %s", got, want)
		}
	}
	second := here.receive()
	out = there.must("migrate", "web", second.addr, "--downtime", "2s", "--json")
	var last struct{ Report live.Report }
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Report.Downtime.Total <= 0 {
		t.Errorf("the last line is %s, %v", lines[len(lines)-1], err)
	}
	here.sound("web")
	if got := first.end(); got.status != 0 || !strings.Contains(got.stderr, "has moved to another host") {
		t.Errorf("where it was: %+v", got)
	}
	if err := second.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

// TestMigrateErrors has what can be wrong with names, disks and addresses. Each error says
// so, and the guest runs on; see also TestOperator.
func TestMigrateErrors(t *testing.T) {
	here, there := newSite(t), newSite(t)
	disk, other := filepath.Join(t.TempDir(), "disk"), filepath.Join(t.TempDir(), "other")
	for _, path := range []string{disk, other} {
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	here.boot("web", "--disk", disk)
	there.boot("taken")
	path := "0=" + disk
	for _, tt := range []struct {
		name    string
		receive []string
		want    []string
	}{
		{"no such disk", []string{"--disk", "0=/no/such/disk"}, []string{"no such file", "give another path with --disk 0=PATH"}},
		{"no such disks", []string{"--disk", "7=" + disk}, []string{"for 2 reasons", "say it with --disk 0=PATH", `no disk "7"`}},
		{"a name that is taken", []string{"--disk", path, "--name", "taken"}, []string{"taken", "is running already"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := there.receive(tt.receive...)
			for _, want := range tt.want {
				here.refuses(want, "migrate", "web", r.addr)
			}
			r.cmd.Process.Kill()
			r.cmd.Wait()
		})
	}
	t.Run("a disk that another has", func(t *testing.T) {
		third, err := blk.New(blk.Config{Path: other})
		if err != nil {
			t.Fatal(err)
		}
		defer third.Close()
		r := there.receive("--disk", "0="+other)
		here.refuses("is in use", "migrate", "web", r.addr, "--downtime", "2s")
	})
	t.Run("nobody", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		here.refuses("connection refused: does godwit receive listen there?", "migrate", "web", l.Addr().String())
	})
	t.Run("no godwit", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{ReadHeaderTimeout: time.Second}
		go s.Serve(l)
		defer s.Close()
		here.refuses("the peer is not godwit", "migrate", "web", l.Addr().String())
	})
	here.sound("web")
	if got := here.migration("web"); got.InDoubt {
		t.Errorf("afterwards it is in doubt: %+v", got)
	}
	r := there.receive("--disk", path)
	here.must("migrate", "web", r.addr, "--downtime", "2s")
	there.sound("web")
}

// TestMigrateBroken breaks a migration off in the middle, in several ways.
func TestMigrateBroken(t *testing.T) {
	here, there := newSite(t), newSite(t)
	here.boot("web")
	for name, tt := range map[string]struct {
		breaks func(source, receiver *running)
		want   string
	}{
		"Ctrl-C":         {func(s, _ *running) { s.cmd.Process.Signal(syscall.SIGINT) }, "was canceled, and the guest goes on here"},
		"cancel":         {func(*running, *running) { here.must("migration", "cancel", "web") }, "was canceled, and the guest goes on here"},
		"the other dies": {func(_, r *running) { r.cmd.Process.Kill() }, "web"},
	} {
		t.Run(name, func(t *testing.T) {
			r := there.receive()
			m := here.start(append([]string{"migrate", "web", r.addr}, slow...)...)
			m.copies()
			if got := here.state("web"); got == nil || got.Moving != "moving" || got.Peer != r.addr {
				t.Errorf("while it moves ps has %+v", got)
			}
			if got := here.migration("web"); got.State != "moving" || got.Owner != "here" {
				t.Errorf("while it moves its state is %+v", got)
			}
			if got := there.state("web"); got == nil || got.State != stateArriving {
				t.Errorf("while it moves ps there has %+v", got)
			}
			tt.breaks(m, r)
			if got := m.end(); got.status != exitFailed || !strings.Contains(got.stderr, tt.want) {
				t.Errorf("%+v, want %q", got, tt.want)
			} else {
				t.Log(got.stderr)
			}
			here.sound("web")
			if got := here.state("web"); got == nil || got.Moving != "" {
				t.Errorf("afterwards ps has %+v", got)
			}
			r.cmd.Process.Kill()
		})
	}
	here.refuses("the guest is not moving", "migration", "cancel", "web")
}

// TestMigrateKilled kills the client only: the process of the guest calls it off.
func TestMigrateKilled(t *testing.T) {
	here, there := newSite(t), newSite(t)
	here.boot("web")
	m := here.start(append([]string{"migrate", "web", there.receive().addr}, slow...)...)
	m.copies()
	m.cmd.Process.Kill()
	here.await("the migration ends", func() bool { return here.state("web").Moving == "" })
	here.sound("web")
}
