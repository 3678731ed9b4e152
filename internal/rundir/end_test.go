package rundir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestKillAndWaitEnd(t *testing.T) {
	dir := base(t)
	c := startOwner(t, "web")
	vm := find(t, "web")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if err := vm.WaitEnd(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waited in vain: %v", err)
	}
	waited := make(chan error, 1)
	go func() { waited <- vm.WaitEnd(context.Background()) }()
	if err := vm.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "web")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
	// Not yet waited for by its parent, the process still has its number.
	if err := vm.Kill(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("killed again: %v", err)
	}
	c.Wait()
	if err := vm.Kill(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("killed once more: %v", err)
	}
	if err := vm.WaitEnd(t.Context()); err != nil {
		t.Errorf("waited again: %v", err)
	}
}

// TestKillTheRightOne: a machine that has the name, and a process that has the
// number, of one that has ended are not taken for it.
func TestKillTheRightOne(t *testing.T) {
	base(t)
	first := startOwner(t, "web")
	vm := find(t, "web")
	if err := vm.Kill(); err != nil {
		t.Fatal(err)
	}
	first.Wait()
	second := startOwner(t, "web")
	vm.PID = second.Process.Pid
	if err := vm.Kill(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("killed another one of this name: %v", err)
	}
	if err := find(t, "web").Kill(); err != nil {
		t.Errorf("the second one: %v", err)
	}
}

// TestWaitEndOfAnother: what a new machine of the same name has is left alone.
func TestWaitEndOfAnother(t *testing.T) {
	base(t)
	d := create(t, "web")
	vm := find(t, "web")
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	vm.PID = 1 << 30 // no process
	create(t, "web")
	if err := vm.WaitEnd(t.Context()); err != nil {
		t.Error(err)
	}
	find(t, "web")
}

func TestRemove(t *testing.T) {
	dir := base(t)
	c := startOwner(t, "web")
	if err := Remove("web"); !errors.Is(err, ErrRunning) {
		t.Errorf("while it runs: %v", err)
	}
	c.Process.Kill()
	c.Wait()
	if err := Remove("web"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "web")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
	if err := Remove("web"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("again: %v", err)
	}
	if err := Remove("../web"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("outside: %v", err)
	}
	// A file is no machine.
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Remove("file"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file: %v", err)
	}
}
