package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/migrate/live"
	"golang.org/x/sys/unix"
)

// TestMigrateLocal moves a guest from process to process on one host: it keeps its name,
// and all that is said of it.
func TestMigrateLocal(t *testing.T) {
	s := newSite(t)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s.boot("web", "--disk", disk)
	for move := range 3 {
		was, pid := s.sound("web"), s.state("web").PID
		at := "unix:" + filepath.Join(s.dir, "receive")
		r := s.receive("--listen", at)
		out := s.must("migrate", "web", at, "--json")
		var last struct{ Report live.Report }
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Report.Shared != 32<<20 || last.Report.Bytes != 0 {
			t.Errorf("move %d: the last line is %s, %v", move, lines[len(lines)-1], err)
		}
		s.isAt("web", r.cmd.Process.Pid) // at once
		s.await("the old process ends", func() bool {
			_, err := os.Stat(fmt.Sprintf("/proc/%d/fd/0", pid))
			return err != nil
		})
		s.isAt("web", r.cmd.Process.Pid) // and for good
		if now := s.sound("web"); now < was {
			t.Errorf("move %d: its counter went from %d back to %d", move, was, now)
		}
		s.await("the socket is free", func() bool {
			_, err := os.Lstat(strings.TrimPrefix(at, "unix:"))
			return err != nil
		})
		if got := s.migration("web"); got.Owner != "here" || got.InDoubt {
			t.Errorf("move %d: the migration: %+v", move, got)
		}
	}
	left, err := filepath.Glob(filepath.Join(s.dir, "run", ".coming-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	s.must("kill", "web")
	s.await("it has ended", func() bool { return s.state("web") == nil })
	// The name is this host's: it may be used again.
	s.boot("web")
	s.sound("web")
}

// isAt checks that a guest runs in a process.
func (s *site) isAt(name string, pid int) {
	s.t.Helper()
	if got := s.state(name); got == nil || got.PID != pid || got.State != "running" || got.Moving != "" {
		s.t.Fatalf("ps has %+v, want it in process %d", got, pid)
	}
}

// TestMigrateLocalRefused: a receiver that cannot take the guest leaves it as it was, under
// its name.
func TestMigrateLocalRefused(t *testing.T) {
	s := newSite(t)
	s.boot("web")
	at := "unix:" + filepath.Join(s.dir, "receive")
	r := s.receive("--listen", at, "--disk", "7=/no/such/disk")
	s.refuses(`no disk "7"`, "migrate", "web", at)
	s.sound("web")
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.end()
	s.refuses("migrate", "migrate", "web", at)
	s.sound("web")
	if left, err := filepath.Glob(filepath.Join(s.dir, "run", ".coming-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	s.receive("--listen", at)
	out := s.must("migrate", "web", at)
	if !strings.Contains(out, "32.0 MiB of memory passed on, none copied") {
		t.Errorf("it says %q", out)
	}
	s.sound("web")
}

// TestMigrateLocalStaying: a receiver that stays has a process for each guest, which gets
// its files through the one that listens.
func TestMigrateLocalStaying(t *testing.T) {
	s := newSite(t)
	s.boot("web")
	s.boot("mail")
	at := "unix:" + filepath.Join(s.dir, "receive")
	r := s.receive("--listen", at, "--stay")
	for _, name := range []string{"web", "mail", "web"} {
		pid := s.state(name).PID
		if out := s.must("migrate", name, at); !strings.Contains(out, "none copied") {
			t.Errorf("it says %q", out)
		}
		if got := s.state(name); got == nil || got.PID == pid || got.PID == r.cmd.Process.Pid {
			t.Errorf("it was in process %d, and ps has %+v", pid, got)
		}
		s.sound(name)
	}
}

// TestMigrateLocalNet: the tap interface goes with the guest, and is there all the time.
func TestMigrateLocalNet(t *testing.T) {
	if os.Getuid() != 0 {
		testenv.Lacks(t, "making tap interfaces needs root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		testenv.Lacks(t, "no tap interfaces here: %v", err)
	}
	// Without Unlock: the thread ends with the test, and what it starts is there, too.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	s.boot("web", "--net", "tap", "--net", "tap:vm7,queues=2")
	index := func(name string) int {
		i, err := net.InterfaceByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return i.Index
	}
	was := [2]int{index("godwit0"), index("vm7")}
	at := "unix:" + filepath.Join(s.dir, "receive")
	r := s.receive("--listen", at, "--disk", "7=/no/such/disk")
	s.refuses(`no disk "7"`, "migrate", "web", at)
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.end()
	pid := s.state("web").PID
	s.receive("--listen", at)
	s.must("migrate", "web", at)
	s.await("the old process ends", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d/fd/0", pid))
		return err != nil
	})
	if is := [2]int{index("godwit0"), index("vm7")}; is != was {
		t.Errorf("the interfaces were %v and are %v", was, is)
	}
	s.sound("web")
}
