package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/live"
)

// newJournal is Options.Journal.
func newJournal(t *testing.T) func() (*handover.Journal, error) {
	dir := filepath.Join(t.TempDir(), "journal")
	return func() (*handover.Journal, error) { return handover.OpenJournal(dir) }
}

// receiver is another host.
type receiver struct {
	addr    string
	request vmm.ReceiveRequest
	// offered gets a token for each guest that is offered, which waits for one from
	// answer.
	offered, answer chan struct{}
	// came gets the guests that have come.
	came chan *vmm.VM
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	journal, err := newJournal(t)()
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{
		addr: l.Addr().String(), request: vmm.ReceiveRequest{Trusted: true}, offered: make(chan struct{}, 1), answer: make(chan struct{}, 1), came: make(chan *vmm.VM, 1),
	}
	ctx, stop := context.WithCancel(context.Background())
	server := &live.Server{Journal: journal, Host: "there", New: func(o live.Offer) (live.Incoming, error) {
		vm := newVM(t, Defaults())
		r.offered <- struct{}{}
		select {
		case <-r.answer:
		case <-ctx.Done():
		}
		return &arriving{vm.Receive(r.request), func() { r.came <- vm }}, nil
	}}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return r
}

// arriving tells when the guest runs.
type arriving struct {
	live.Incoming
	runs func()
}

func (a *arriving) Run() error {
	err := a.Incoming.Run()
	if err == nil {
		a.runs()
	}
	return err
}

// put begins a migration, whose last line comes from the channel.
func (d do) put(t *testing.T, body string) <-chan MigrationStatus {
	t.Helper()
	last := make(chan MigrationStatus, 1)
	go func() {
		var s MigrationStatus
		status, answer := d("PUT", "/migration", body)
		lines := strings.Split(answer, "\n")
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &s); err != nil || status != 200 {
			t.Errorf("PUT /migration %s: status %d, %s", body, status, answer)
		}
		last <- s
	}()
	return last
}

// migrates has all that a client can do with a migration, and at last moves the guest.
func (d do) migrates(t *testing.T, vm *vmm.VM, r *receiver) {
	t.Helper()
	if got := d.must(t, "GET", "/migration", ""); got != "{}" {
		t.Errorf("before there was a migration: %s", got)
	}
	const none = "the guest is not moving"
	for _, body := range []string{`{"action": "cancel"}`, `{"action": "run-here"}`, `{"action": "give-up"}`, `{"bandwidth_bytes": 1}`} {
		d.refused(t, "PATCH", "/migration", body, none)
	}
	body := fmt.Sprintf(`{"address": %q, "downtime_ms": 2000, "compress": "none", "connections": 2, "bandwidth_bytes": 1}`, r.addr)
	last := d.put(t, body)
	<-r.offered
	for body, want := range map[string]string{
		`{"action": "run-here"}`:                                 "needs a statement",
		`{"action": "run-here", "statement": "the plug is out"}`: "was not let go",
		`{"action": "give-up"}`:                                  "was not let go",
		`{"action": "dance"}`:                                    "want cancel, run-here or give-up",
		`{"action": "dance", "bandwidth_bytes": 1000000}`:        "want cancel, run-here or give-up",
		`{"bandwidth_bytes": -1}`:                                "whole number",
	} {
		d.refused(t, "PATCH", "/migration", body, want)
	}
	d.refused(t, "PUT", "/migration", body, "moving to "+r.addr+" already")
	d.must(t, "PATCH", "/migration", `{"action": "cancel"}`)
	r.answer <- struct{}{}
	if s := <-last; s.Error != errCanceled.Error() || s.Report != nil || s.Progress != nil {
		t.Errorf("a canceled migration: %+v", s)
	}
	if p := vm.Phase(); p != vmm.Running {
		t.Errorf("after that the guest is %v", p)
	}
	d.refused(t, "PATCH", "/migration", `{"action": "cancel"}`, none)

	last = d.put(t, body)
	<-r.offered
	// As slow as it began it would take days.
	d.must(t, "PATCH", "/migration", `{"bandwidth_bytes": 0}`)
	r.answer <- struct{}{}
	s := <-last
	if s.Report == nil || s.Error != "" || s.Address != r.addr || s.Report.Downtime.Total <= 0 {
		t.Fatalf("the migration: %+v", s)
	}
	<-vm.Done()
	if p := (<-r.came).Phase(); p != vmm.Running {
		t.Errorf("there the guest is %v", p)
	}
	var told MigrationStatus
	if err := json.Unmarshal([]byte(d.must(t, "GET", "/migration", "")), &told); err != nil || told.Progress.Phase != live.PhaseDone || *told.Report != *s.Report {
		t.Errorf("afterwards: %+v, %v", told, err)
	}
}

// TestMigrationRequests has what clients ask for that cannot be.
func TestMigrationRequests(t *testing.T) {
	vm := newVM(t, Defaults())
	early := client(t, New(vm, Options{Journal: newJournal(t)}), parseDocument(t))
	late, _ := started(t, func(*vmm.Config) {})
	for _, test := range []struct {
		do         do
		body, want string
	}{
		{early, `{"address": "127.0.0.1:1"}`, tooEarly},
		{late, `{"address": "127.0.0.1:1"}`, "no journal"},
		{late, `{}`, "missing field `address`"},
		{late, `{"address": "x", "connections": 33}`, "want 1 to 32"},
		{late, `{"address": "x", "connections": -1}`, "want 1 to 32"},
		{late, `{"address": "x", "downtime_ms": -1}`, "at most a year"},
		{late, `{"address": "x", "timeout_ms": 40000000000}`, "at most a year"},
		{late, `{"address": "x", "compress": "lz4"}`, "want none, zstd or auto"},
		{late, `{"address": "x", "post_copy": "soon"}`, "want never, auto or now"},
		{late, `{"address": "x", "with_disks": 1}`, "with_disks"},
		{late, `{"address": "x", "tls_cert": "/no/such/file"}`, "--tls-cert: stat /no/such/file"},
		{late, `{"address": "x", "bandwidth": 1}`, "unknown field"},
	} {
		test.do.refused(t, "PUT", "/migration", test.body, test.want)
	}
}

// TestMigrationTakesLonger: the server's time for a request is not that of a migration.
func TestMigrationTakesLonger(t *testing.T) {
	r := newReceiver(t)
	vm := newVM(t, vmm.Config{CPUs: 1, Memory: 32 << 20, Kernel: spin(t)})
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	s := New(vm, Options{Journal: newJournal(t)})
	s.http.ReadTimeout = time.Second
	last := client(t, s, parseDocument(t)).put(t, fmt.Sprintf(`{"address": %q, "downtime_ms": 2000}`, r.addr))
	<-r.offered
	time.Sleep(2 * s.http.ReadTimeout)
	r.answer <- struct{}{}
	if s := <-last; s.Report == nil {
		t.Errorf("it ended with %+v", s)
	}
}
