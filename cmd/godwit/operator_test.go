package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/internal/api"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/live"
)

// TestOperator has what an operator meets when a migration cannot be, or is not wanted any
// more: each error says what to do, and the guest goes on where it is with its memory as it
// was; at last it moves, with all of TLS and a limit, which it keeps.
func TestOperator(t *testing.T) {
	here, there := newSite(t), newSite(t)
	here.boot("web")
	cert, key := testenv.Certificate(t, t.TempDir())
	theirs, theirKey := testenv.Certificate(t, t.TempDir())
	ours := func(ca string) []string { return []string{"--tls-cert", cert, "--tls-key", key, "--tls-ca", ca} }
	secure := func(ca string) []string { return []string{"--tls-cert", theirs, "--tls-key", theirKey, "--tls-ca", ca} }
	receiver := func(args ...string) func(*testing.T) string {
		return func(t *testing.T) string {
			r := there.receive(args...)
			t.Cleanup(func() { r.cmd.Process.Kill(); r.cmd.Wait() })
			return r.addr
		}
	}
	lacking := func(change func(map[string]any)) func(*testing.T) string {
		return func(t *testing.T) string { return lackingHost(t, change) }
	}
	for _, tt := range []struct {
		name string
		// to is the other host, and flags those of migrate.
		to    func(*testing.T) string
		flags []string
		// meanwhile, if set, is done while memory is being copied.
		meanwhile func(m *running)
		want      string
	}{
		{"TLS to a plain one", receiver(), ours(theirs), nil, "the source uses TLS and the destination does not: give both --tls-cert, --tls-key and --tls-ca, or neither"},
		{"plain to TLS", receiver(secure(cert)...), nil, nil, "the destination wants TLS and the source does not use it: give both"},
		{"the receiver's certificate is another's", receiver(secure(cert)...), ours(cert), nil, "not signed by an authority in --tls-ca: give the authority that signed it"},
		{"the source's certificate is another's", receiver(secure(theirs)...), ours(theirs), nil, "the peer does not know the authority that signed our certificate: its --tls-ca has to have it"},
		{"a certificate without its key", receiver(secure(cert)...), []string{"--tls-cert", cert, "--tls-key", theirKey, "--tls-ca", theirs}, nil, "do not belong together"},
		{"another version", func(t *testing.T) string {
			relay := newRelay(t, receiver()(t))
			relay.speak(9)
			return relay.addr()
		}, nil, nil, "use the same godwit on both"},
		{"another processor", lacking(lacksFeatures), nil, nil, "this host lacks processor features"},
		{"no memory", lacking(func(guest map[string]any) { guest["Used"] = uint64(1 << 50) }), nil, nil, "free some"},
		{"cancel", receiver(), slow, func(*running) { here.must("migration", "cancel", "web") }, "was canceled, and the guest goes on here"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := here.start(append([]string{"migrate", "web", tt.to(t)}, tt.flags...)...)
			if tt.meanwhile != nil {
				m.copies()
				tt.meanwhile(m)
			}
			if got := m.end(); got.status != exitFailed || !strings.Contains(got.stderr, tt.want) {
				t.Errorf("%+v, want %q", got, tt.want)
			} else {
				t.Log(strings.TrimSpace(got.stderr))
			}
			here.sound("web")
			if got := here.state("web"); got == nil || got.Moving != "" || got.State != "running" {
				t.Errorf("afterwards ps has %+v", got)
			}
			if got := here.migration("web"); got.InDoubt {
				t.Errorf("afterwards it is in doubt: %+v", got)
			}
		})
	}
	t.Run("bandwidth", func(t *testing.T) {
		const limit, within = 4 << 20, 0.05
		addr := receiver(secure(cert)...)(t)
		out := here.must(append([]string{"migrate", "web", addr, "--bandwidth", "4M", "--downtime", "1m", "--json"}, ours(theirs)...)...)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		var last api.MigrationStatus
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Report == nil {
			t.Fatalf("the last line is %s, %v", lines[len(lines)-1], err)
		}
		// A busy machine may send less, and never more.
		rate := float64(last.Report.Wire) / last.Report.Total.Seconds()
		t.Logf("%d bytes in %v: %.1f%% of the limit", last.Report.Wire, last.Report.Total, 100*rate/limit)
		if rate > limit*(1+within) {
			t.Errorf("%.0f bytes a second, with a limit of %d", rate, limit)
		}
		there.sound("web")
	})
}

// lacksFeatures has a guest need what no processor has.
func lacksFeatures(guest map[string]any) {
	cpu := guest["Machine"].(map[string]any)["CPUs"].([]any)[0].(map[string]any)
	for _, e := range cpu["CPUID"].([]any) {
		if e := e.(map[string]any); fmt.Sprint(e["Function"]) == "7" && fmt.Sprint(e["Index"]) == "0" {
			e["ECX"] = uint32(1<<32 - 1)
		}
	}
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
