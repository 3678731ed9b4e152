package rundir

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// createAfter makes a folder for a machine that this process has.
func createAfter(t *testing.T, name string, pid int) *Dir {
	t.Helper()
	d, err := CreateAfter(name, pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// entries are the machines, and what else there is.
func entries(t *testing.T, base string) (names []string) {
	t.Helper()
	all, err := os.ReadDir(base)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if e.Name() != baseLock {
			names = append(names, e.Name())
		}
	}
	return names
}

// listens says whether somebody listens at a socket of the machine of this name.
func listens(t *testing.T, name string) bool {
	t.Helper()
	c, err := net.Dial("unix", find(t, name).Path(APIFile))
	if err == nil {
		c.Close()
	}
	return err == nil
}

// TestTake: one that comes has the name when it takes it, and the end of the one that had
// it changes nothing.
func TestTake(t *testing.T) {
	dir := base(t)
	was := create(t, "web")
	old, err := net.Listen("unix", was.Path(APIFile))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	is := createAfter(t, "web", os.Getpid())
	if !is.Aside() || is.Name() != "web" {
		t.Fatalf("aside %v, name %s", is.Aside(), is.Name())
	}
	if vms, err := List(); err != nil || len(vms) != 1 {
		t.Errorf("%d machines, %v, want one", len(vms), err)
	}
	l, err := net.Listen("unix", is.Path(APIFile))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := errors.Join(was.SetUp("old"), is.SetUp("new")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := is.Take(); err != nil {
			t.Fatal(err)
		}
	}
	if is.Aside() {
		t.Error("it is aside still")
	}
	// All that the old one may do at its end.
	if err := errors.Join(old.Close(), was.SetDown(), was.Close()); err != nil {
		t.Error(err)
	}
	if got := entries(t, dir); len(got) != 1 || got[0] != "web" {
		t.Errorf("there are %v", got)
	}
	if !listens(t, "web") {
		t.Error("nobody listens for it")
	}
	var guest string
	if up, err := find(t, "web").Up(&guest); !up || guest != "new" || err != nil {
		t.Errorf("up %v %q, %v", up, guest, err)
	}
	if err := is.Close(); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, dir); len(got) != 0 {
		t.Errorf("there are %v", got)
	}
}

// TestTakeLate: the one that had the name is gone by then.
func TestTakeLate(t *testing.T) {
	base(t)
	was := create(t, "web")
	is := createAfter(t, "web", os.Getpid())
	if err := errors.Join(was.Close(), is.Take()); err != nil {
		t.Fatal(err)
	}
	find(t, "web")
}

// TestTakeNot: one that does not come leaves all as it was.
func TestTakeNot(t *testing.T) {
	dir := base(t)
	was := create(t, "web")
	is := createAfter(t, "web", os.Getpid())
	if err := is.Close(); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, dir); len(got) != 1 || got[0] != was.Name() {
		t.Errorf("there are %v", got)
	}
	find(t, "web")
}

// TestTakeOthers: a name that a third one has is not taken.
func TestTakeOthers(t *testing.T) {
	base(t)
	create(t, "web")
	if _, err := CreateAfter("web", os.Getpid()+1); !errors.Is(err, ErrRunning) {
		t.Errorf("got %v, want %v", err, ErrRunning)
	}
	if d := createAfter(t, "free", os.Getpid()); d.Aside() {
		t.Error("a name that nobody has is another's")
	}
	was := create(t, "moved")
	is := createAfter(t, "moved", os.Getpid())
	if err := was.Close(); err != nil {
		t.Fatal(err)
	}
	owner, out := exec.Command(os.Args[0]), make([]byte, 64)
	owner.Env = append(os.Environ(), ownerName+"=moved")
	stdout, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = owner.Process.Kill()
		_ = owner.Wait()
	}()
	if _, err := stdout.Read(out); err != nil {
		t.Fatal(err)
	}
	if err := is.Take(); !errors.Is(err, ErrRunning) || !is.Aside() {
		t.Errorf("got %v, want %v", err, ErrRunning)
	}
}

// TestAsideSwept: what a killed process has left is removed by the next one.
func TestAsideSwept(t *testing.T) {
	dir := base(t)
	create(t, "web")
	left, err := os.MkdirTemp(dir, asidePattern)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(left, lockFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	createAfter(t, "web", os.Getpid())
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", left, err)
	}
}
