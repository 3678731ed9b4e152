package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/handover"
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

// TestMigrateErrors has what can be wrong. Each error says so, and the guest runs on.
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
	cert, key := certificate(t)
	theirs, theirKey := certificate(t)
	ours := func(ca string) []string { return []string{"--tls-cert", cert, "--tls-key", key, "--tls-ca", ca} }
	secure := func(ca string) []string { return []string{"--tls-cert", theirs, "--tls-key", theirKey, "--tls-ca", ca} }
	path := "0=" + disk
	for _, tt := range []struct {
		name            string
		source, receive []string
		want            []string
	}{
		{"TLS to a plain one", ours(theirs), nil, []string{"the source uses TLS and the destination does not"}},
		{"plain to TLS", nil, secure(cert), []string{"the destination wants TLS"}},
		{"the receiver's certificate", ours(cert), secure(cert), []string{"not signed by an authority in --tls-ca"}},
		{"the source's certificate", ours(theirs), secure(theirs), []string{"the peer does not know the authority that signed our certificate"}},
		{"no such disk", nil, []string{"--disk", "0=/no/such/disk"}, []string{"no such file", "give another path with --disk 0=PATH"}},
		{"no such disks", nil, []string{"--disk", "7=" + disk}, []string{"for 2 reasons", "say it with --disk 0=PATH", `no disk "7"`}},
		{"a name that is taken", nil, []string{"--disk", path, "--name", "taken"}, []string{"taken", "is running already"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := there.receive(tt.receive...)
			for _, want := range tt.want {
				here.refuses(want, append([]string{"migrate", "web", r.addr}, tt.source...)...)
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
	t.Run("another version", func(t *testing.T) {
		relay := newRelay(t, there.receive().addr)
		relay.version = 9
		here.refuses("use the same godwit on both", "migrate", "web", relay.addr())
	})
	t.Run("nobody", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		here.refuses("connection refused", "migrate", "web", l.Addr().String())
	})
	t.Run("no godwit", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{ReadHeaderTimeout: time.Second}
		go s.Serve(l)
		defer s.Close()
		here.refuses("godwit", "migrate", "web", l.Addr().String())
	})
	here.sound("web")
	if got := here.migration("web"); got.InDoubt {
		t.Errorf("afterwards it is in doubt: %+v", got)
	}
	r := there.receive("--disk", path)
	here.must("migrate", "web", r.addr, "--downtime", "2s")
	there.sound("web")
}

// TestMigrateLacks moves to a host that lacks what the guest needs.
func TestMigrateLacks(t *testing.T) {
	here := newSite(t)
	here.boot("web")
	for name, tt := range map[string]struct {
		// change changes the offer, from which the host sees what the guest needs.
		change func(guest map[string]any)
		want   string
	}{
		"processor features": {func(guest map[string]any) {
			cpu := guest["Machine"].(map[string]any)["CPUs"].([]any)[0].(map[string]any)
			for _, e := range cpu["CPUID"].([]any) {
				if e := e.(map[string]any); fmt.Sprint(e["Function"]) == "7" && fmt.Sprint(e["Index"]) == "0" {
					e["ECX"] = uint32(1<<32 - 1)
				}
			}
		}, "this host lacks processor features"},
		"memory": {func(guest map[string]any) { guest["Used"] = uint64(1 << 50) }, "free some"},
	} {
		t.Run(name, func(t *testing.T) { here.refuses(tt.want, "migrate", "web", lackingHost(t, tt.change)) })
	}
	here.sound("web")
}

// lackingHost receives guests whose offers it changes.
func lackingHost(t *testing.T, change func(map[string]any)) string {
	t.Helper()
	sys, err := kvm.Open("")
	if err != nil {
		t.Fatal(err)
	}
	journal, err := handover.OpenJournal(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	server := &live.Server{Journal: journal, Host: "there", New: func(o live.Offer) (live.Incoming, error) {
		vm := vmm.New(ctx, vmm.Options{System: sys, Name: "web"}, vmm.Config{})
		return &changed{vm.Receive(vmm.ReceiveRequest{Trusted: true, Vsock: filepath.Join(t.TempDir(), "v")}), change}, nil
	}}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		sys.Close()
	})
	return l.Addr().String()
}

type changed struct {
	live.Incoming
	change func(map[string]any)
}

func (c *changed) Prepare(o live.Offer) (*memory.Guest, error) {
	d := json.NewDecoder(strings.NewReader(string(o.Guest)))
	d.UseNumber()
	var guest map[string]any
	if err := d.Decode(&guest); err != nil {
		return nil, err
	}
	c.change(guest)
	var err error
	if o.Guest, err = json.Marshal(guest); err != nil {
		return nil, err
	}
	return c.Incoming.Prepare(o)
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

// TestMigrateBandwidth measures what passes over the network. A host that is busy with
// other things may send less; never more.
func TestMigrateBandwidth(t *testing.T) {
	const limit, within, during, attempts = 4 << 20, 0.05, 3 * time.Second, 4
	here, there := newSite(t), newSite(t)
	here.boot("web")
	relay := newRelay(t, there.receive().addr)
	m := here.start("migrate", "web", relay.addr(), "--bandwidth", "4M", "--downtime", "1ms", "--json")
	m.copies()
	for i := range attempts {
		began, before := time.Now(), relay.data.Load()
		time.Sleep(during)
		rate := float64(relay.data.Load()-before) / time.Since(began).Seconds()
		t.Logf("%.1f%% of the limit", 100*rate/limit)
		if rate > limit*(1+within) {
			t.Errorf("%.0f bytes a second, with a limit of %d", rate, limit)
		}
		if rate > limit*(1-within) {
			break
		}
		if i == attempts-1 {
			t.Errorf("%.0f bytes a second, with a limit of %d, %d times", rate, limit, attempts)
		}
	}
	here.must("migration", "cancel", "web")
	m.end()
	here.sound("web")
}
