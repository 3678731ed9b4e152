package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/rundir"
)

// siteTime is how long something may take that should be quick.
const siteTime = time.Minute

// site is a host with guests and a journal of its own, as far as migration goes.
type site struct {
	t   *testing.T
	dir string
}

func newSite(t *testing.T) *site {
	t.Helper()
	needKVM(t)
	// The names of tests make paths too long for sockets.
	dir, err := os.MkdirTemp("", "site-")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t, dir}
	t.Cleanup(func() {
		s.killAll()
		os.RemoveAll(dir)
	})
	return s
}

// killAll kills the guests of the site.
func (s *site) killAll() {
	files, _ := filepath.Glob(filepath.Join(s.dir, "run", "*", "vm.json"))
	for _, path := range files {
		var info rundir.Info
		if text, err := os.ReadFile(path); err == nil && json.Unmarshal(text, &info) == nil && info.PID > 0 {
			syscall.Kill(info.PID, syscall.SIGKILL)
		}
	}
}

func (s *site) program(args ...string) *exec.Cmd {
	c := program(s.t, args...)
	c.Env = append(c.Env, "GODWIT_RUNTIME_DIR="+s.dir+"/run", "GODWIT_STATE_DIR="+s.dir+"/state")
	return c
}

func (s *site) run(args ...string) result {
	s.t.Helper()
	var stdout, stderr bytes.Buffer
	c := s.program(args...)
	c.Stdout, c.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := c.Run(); err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), c.ProcessState.ExitCode()}
}

// must runs what has to go well.
func (s *site) must(args ...string) string {
	s.t.Helper()
	r := s.run(args...)
	if r.status != 0 {
		s.t.Fatalf("godwit %s: %+v", strings.Join(args, " "), r)
	}
	return r.stdout
}

// refuses runs what has to fail with these words.
func (s *site) refuses(want string, args ...string) {
	s.t.Helper()
	if r := s.run(args...); r.status != exitFailed || !strings.Contains(r.stderr, want) {
		s.t.Errorf("godwit %s: %+v, want %q", strings.Join(args, " "), r, want)
	}
}

// boot starts a guest that checks its memory for as long as it lives.
func (s *site) boot(name string, args ...string) {
	s.t.Helper()
	elf, err := micro.Check(16<<20, 24<<20, 4096, micro.Forever, nil)
	kernel := microKernel(s.t, elf, err)
	s.must(append([]string{"boot", "--allow-software-kvm", "--detach", "--memory", "32M", "--kernel", kernel, "--name", name}, args...)...)
}

// sound checks that the guest runs and has found its memory as it left it, and returns
// how far it has come.
func (s *site) sound(name string) uint64 {
	s.t.Helper()
	look := func() micro.Result {
		path := filepath.Join(s.t.TempDir(), "snapshot")
		s.must("snapshot", name, path)
		f, err := os.Open(filepath.Join(path, "memory"))
		if err != nil {
			s.t.Fatal(err)
		}
		defer f.Close()
		p := make([]byte, micro.ResultSize)
		if _, err := f.ReadAt(p, micro.ResultStart); err != nil {
			s.t.Fatal(err)
		}
		r, err := micro.ReadResult(p)
		if err != nil {
			s.t.Fatal(err)
		}
		return r
	}
	first := look()
	for until := time.Now().Add(siteTime); ; {
		now := look()
		switch {
		case now.Mismatches != 0:
			s.t.Fatalf("the memory of guest %s is not as it was: %+v", name, now)
		case now.Count > first.Count:
			return now.Count
		case time.Now().After(until):
			s.t.Fatalf("guest %s does not go on", name)
		}
	}
}

// state is what ps has of a guest, nil if it does not run.
func (s *site) state(name string) *guestRow {
	s.t.Helper()
	var rows []guestRow
	if err := json.Unmarshal([]byte(s.must("ps", "--json")), &rows); err != nil {
		s.t.Fatal(err)
	}
	for _, r := range rows {
		if r.Name == name {
			return &r
		}
	}
	return nil
}

// migration is what is known of the last migration of a guest.
func (s *site) migration(name string) migrationRow {
	s.t.Helper()
	var rows []migrationRow
	if err := json.Unmarshal([]byte(s.must("migration", "status", "--json", name)), &rows); err != nil {
		s.t.Fatal(err)
	}
	return append(rows, migrationRow{})[0]
}

// await waits until something is so.
func (s *site) await(what string, is func() bool) {
	s.t.Helper()
	for until := time.Now().Add(siteTime); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(until) {
			s.t.Fatalf("waited for %v in vain: %s", siteTime, what)
		}
	}
}

// running is a godwit in the background.
type running struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *bufio.Reader // of standard output
	err  lockedBuffer
	addr string
}

func (s *site) start(args ...string) *running {
	s.t.Helper()
	r := &running{t: s.t, cmd: s.program(args...)}
	out, err := r.cmd.StdoutPipe()
	r.cmd.Stderr = &r.err
	if err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	r.out = bufio.NewReader(out)
	s.t.Cleanup(func() { r.cmd.Process.Kill() })
	return r
}

// receive starts a receiver at a free port, unless the arguments say where.
func (s *site) receive(args ...string) *running {
	s.t.Helper()
	r := s.start(append([]string{"receive", "--allow-software-kvm", "--listen", "127.0.0.1:0"}, args...)...)
	const at = "waiting for guests at "
	s.await("the receiver listens", func() bool {
		_, rest, found := strings.Cut(r.err.String(), at)
		var whole bool
		r.addr, _, whole = strings.Cut(rest, "\n")
		return found && whole || r.cmd.ProcessState != nil
	})
	return r
}

// end waits for the end and returns what there was.
func (r *running) end() result {
	r.t.Helper()
	var out bytes.Buffer
	_, err := out.ReadFrom(r.out)
	var exit *exec.ExitError
	if e := r.cmd.Wait(); e != nil && !errors.As(e, &exit) {
		err = errors.Join(err, e)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return result{out.String(), r.err.String(), r.cmd.ProcessState.ExitCode()}
}

// copies waits until memory is being copied.
func (r *running) copies() {
	r.t.Helper()
	for {
		line, err := r.out.ReadString('\n')
		if err != nil {
			r.t.Fatalf("%v: %s", err, r.err.String())
		}
		if strings.Contains(line, `"phase":"copy"`) {
			return
		}
	}
}
