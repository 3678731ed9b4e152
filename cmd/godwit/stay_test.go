package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/godwit-vmm/godwit/migrate/stream"
)

// TestReceiveStay takes several guests at one address, which outlive who listens there.
func TestReceiveStay(t *testing.T) {
	here, there := newSite(t), newSite(t)
	for _, name := range []string{"web", "db"} {
		here.boot(name)
	}
	addr := strings.TrimSpace(there.must("receive", "--allow-software-kvm", "--listen", "127.0.0.1:0", "--stay", "--detach"))
	listener := there.listener()
	here.must("migrate", "web", addr, "--downtime", "2s")
	there.sound("web")
	if err := syscall.Kill(listener, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	there.await("the address is free", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	second := there.receive("--stay", "--listen", addr)
	here.must("migrate", "db", addr, "--downtime", "2s")
	for _, name := range []string{"web", "db"} {
		there.sound(name)
	}
	second.cmd.Process.Signal(syscall.SIGTERM)
	if got := second.end(); got.status != 0 {
		t.Errorf("the receiver ended with %+v", got)
	}
	there.sound("db")
	there.refuses("--name and --vsock are for one", "receive", "--stay", "--listen", addr, "--name", "x")
}

// TestReceiveStayLimit: strangers cannot have a host start any number of processes.
func TestReceiveStayLimit(t *testing.T) {
	here, there := newSite(t), newSite(t)
	here.boot("web")
	r := there.receive("--stay")
	for range maxComing {
		d := stream.Dialer{Addr: r.addr, ID: stream.NewID()}
		c, err := d.Control(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	here.refuses("16 guests are coming already: try again later", "migrate", "web", r.addr)
	here.sound("web")
	d := stream.Dialer{Addr: r.addr, ID: stream.NewID()}
	if _, err := d.Data(t.Context(), stream.Data, 0); err == nil || !strings.Contains(err.Error(), "is not known here") {
		t.Errorf("a connection for memory of nothing: %v", err)
	}
}

// listener is the process that listens in the background: its descriptors tell nothing,
// its environment does.
func (s *site) listener() int {
	s.t.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, path := range entries {
		environ, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(environ), "GODWIT_STATE_DIR="+s.dir+"/state\x00") {
			continue
		}
		args, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if strings.Contains(string(args), "\x00receive\x00") && !strings.Contains(string(environ), inletVariable+"=") {
			var pid int
			for _, c := range strings.Split(path, "/")[2] {
				pid = 10*pid + int(c-'0')
			}
			return pid
		}
	}
	s.t.Fatal("no receiver runs in the background")
	return 0
}

// TestReceiveStayAgain: the word that a guest has come is lost, and so is the process that
// listened. The next one has the source hear it.
func TestReceiveStayAgain(t *testing.T) {
	here, there := newSite(t), newSite(t)
	here.boot("web")
	first := there.receive("--stay")
	relay := newRelay(t, first.addr)
	relay.breakAt(afterReady(false))
	m := here.start("migrate", "web", relay.addr(), "--downtime", "2s")
	here.await("the guest is in doubt", func() bool { return here.migration("web").InDoubt })
	if got := here.state("web"); got == nil || got.Moving == "" {
		t.Errorf("in doubt, ps has %+v", got)
	}
	here.refuses("was let go", "migration", "cancel", "web")
	here.refuses("is in doubt", "migration", "resolve", "web")
	there.await("the guest is there", func() bool { return there.state("web") != nil })
	first.cmd.Process.Kill()
	first.cmd.Wait()
	second := there.receive("--stay")
	if got := second.err.String(); !strings.Contains(got, "migrations that are not over:\nweb: came") {
		t.Errorf("of the guest that came before it says %q", got)
	}
	relay.mend(second.addr)
	if got := m.end(); got.status != 0 || !strings.Contains(got.stdout, "web moved to") {
		t.Errorf("it ended with %+v", got)
	}
	there.sound("web")
	here.await("the process here ends", func() bool { return here.state("web") == nil })
	if got := here.migration("web"); got.InDoubt || got.Owner != "there" {
		t.Errorf("afterwards: %+v", got)
	}
}

// afterReady breaks connections after READY: at COMMIT, or at what answers that.
func afterReady(commit bool) func(toReceiver bool, kind byte) bool {
	var ready atomic.Bool
	return func(toReceiver bool, kind byte) bool {
		switch {
		case commit && toReceiver:
			return kind == kindHandover
		case toReceiver || kind < kindHandover:
			return false
		}
		return ready.Swap(true) && !commit
	}
}

// TestResolve decides guests in doubt, by their processes and without.
func TestResolve(t *testing.T) {
	for _, args := range [][]string{{"--run-here"}, {"--run-here", "--fenced", "x", "--give-up"}, {"--fenced", "x"}} {
		if _, _, err := runCobra(t, newMigration(), append([]string{"resolve", "web"}, args...)...); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
	here, there := newSite(t), newSite(t)
	here.refuses("nothing is known", "migration", "resolve", "web")
	r := there.receive("--stay")
	doubt := func(relay *relay) *running {
		here.boot("web")
		relay.breakAt(afterReady(true))
		m := here.start("migrate", "web", relay.addr(), "--downtime", "2s")
		here.await("the guest is in doubt", func() bool { return here.migration("web").InDoubt })
		return m
	}
	relay := newRelay(t, r.addr)
	fence := []string{"migration", "resolve", "web", "--run-here", "--fenced", "its plug is out"}

	m := doubt(relay)
	if out := here.must(fence...); !strings.Contains(out, "runs here") {
		t.Errorf("it says %q", out)
	}
	if got := m.end(); got.status != exitFailed {
		t.Errorf("the migration ended with %+v", got)
	}
	here.sound("web")
	here.refuses("is not in doubt", fence...)
	here.must("kill", "web")

	// What was ready there is not run, for nobody says so.
	there.must("kill", "web")

	relay.mend(r.addr)
	doubt(relay)
	here.must("kill", "web")
	if got := here.migration("web"); !got.InDoubt || got.PID != 0 {
		t.Errorf("without a process: %+v", got)
	}
	here.refuses("is in doubt: decide that first", "migration", "resolve", "web", "--forget", "--yes")
	relay.mend(r.addr)
	if out := here.must("migration", "resolve", "web"); !strings.Contains(out, "the other host's") {
		t.Errorf("the guest is ready there, but resolve says %q", out)
	}
	there.sound("web")
	there.must("kill", "web")
	here.must("migration", "resolve", "web", "--forget", "--yes")

	doubt(relay)
	here.must("kill", "web")
	there.must("kill", "web")
	relay.mend(r.addr)
	if out := here.must("migration", "resolve", "web"); !strings.Contains(out, "this host's again") {
		t.Errorf("the guest has ended there, but resolve says %q", out)
	}

	doubt(relay)
	here.must("kill", "web")
	if out := here.must("migration", "resolve", "web", "--give-up"); !strings.Contains(out, "the other host's") {
		t.Errorf("it says %q", out)
	}
	here.refuses("Say --yes", "migration", "resolve", "web", "--forget")
	here.must("migration", "resolve", "web", "--forget", "--yes")
	here.refuses("nothing is known", "migration", "resolve", "web")
	here.boot("web")
}
