package rundir

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// ownerName makes this test program hold a machine of that name until it is
// killed.
const ownerName = "RUNDIR_TEST_OWNER"

func TestMain(m *testing.M) {
	if name := os.Getenv(ownerName); name != "" {
		d, err := Create(name)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("created", d.Name())
		select {}
	}
	os.Exit(m.Run())
}

// base gives the tests a folder of their own.
func base(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	t.Setenv("GODWIT_RUNTIME_DIR", dir)
	return dir
}

func create(t *testing.T, name string) *Dir {
	t.Helper()
	d, err := Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func find(t *testing.T, name string) *VM {
	t.Helper()
	vm, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Close() })
	return vm
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"web": true, "A-1_b.c": true, "0": true, strings.Repeat("x", 63): true,
		"": false, ".": false, "..": false, ".x": false, "-x": false, "a/b": false, "a b": false, "a:b": false, "ü": false, "a\n": false,
		strings.Repeat("x", 64): false,
	} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
	base(t)
	if _, err := Create("../x"); err == nil {
		t.Error("made a folder outside")
	}
	if _, err := Open("../x"); err == nil || errors.Is(err, ErrNotRunning) {
		t.Errorf("found one outside: %v", err)
	}
}

func TestLifeOfAMachine(t *testing.T) {
	dir := base(t)
	if _, err := Open("web"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("before: %v", err)
	}
	d, err := Create("web")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create("web"); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("created again: %v", err)
	}
	vm := find(t, "web")
	if vm.PID != os.Getpid() || vm.Name != "web" || vm.VsockPath() != filepath.Join(dir, "web", VsockFile) {
		t.Errorf("found %+v, vsock at %s", vm.Info, vm.VsockPath())
	}
	if err := d.SetVsock("/elsewhere"); err != nil {
		t.Error(err)
	}
	if got := find(t, "web").VsockPath(); got != "/elsewhere" {
		t.Errorf("vsock at %s", got)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Open("web"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "web")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

func TestNumbered(t *testing.T) {
	base(t)
	for _, want := range []string{"vm", "vm-2", "vm-3"} {
		d, err := CreateNumbered("vm", nil)
		if err != nil || d.Name() != want {
			t.Fatalf("got %v, %v, want %s", d, err, want)
		}
		defer d.Close()
	}
	vms, err := List()
	if err != nil || len(vms) != 3 || vms[0].Name != "vm" || vms[2].Name != "vm-3" {
		t.Errorf("list of %d, %v", len(vms), err)
	}
	for _, vm := range vms {
		vm.Close()
	}
}

// TestOneWins has many that want the same name.
func TestOneWins(t *testing.T) {
	base(t)
	var wg sync.WaitGroup
	won := make(chan *Dir, 20)
	for range cap(won) {
		wg.Go(func() {
			d, err := Create("x")
			if err == nil {
				won <- d
			} else if !errors.Is(err, ErrRunning) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%d won", len(won))
	}
	for range len(won) {
		(<-won).Close()
	}
}

// startOwner has another process run a machine.
func startOwner(t *testing.T, name string) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), ownerName+"="+name)
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "created "+name+"\n" {
		t.Fatalf("the owner says %q, %v", line, err)
	}
	return c
}

// TestKilledOwner: what a killed process leaves is no machine any more, and goes.
func TestKilledOwner(t *testing.T) {
	dir := base(t)
	a, b := startOwner(t, "a"), startOwner(t, "b")
	for _, name := range []string{"a", "b"} {
		find(t, name)
		if _, err := Create(name); !errors.Is(err, ErrRunning) {
			t.Errorf("%s: created while it runs: %v", name, err)
		}
	}
	vm := find(t, "a")
	waited := make(chan error, 1)
	go func() { waited <- vm.WaitUp(context.Background()) }()
	for _, c := range []*exec.Cmd{a, b} {
		c.Process.Kill()
		c.Wait()
	}
	if err := <-waited; !errors.Is(err, ErrNotRunning) {
		t.Errorf("waited for it to come up: %v", err)
	}
	if err := vm.WaitUp(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("waited again: %v", err)
	}
	if _, err := Open("a"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a: %v", err)
	}
	create(t, "a")
	vms, err := List()
	if err != nil || len(vms) != 1 || vms[0].Name != "a" {
		t.Errorf("list of %d, %v", len(vms), err)
	}
	if _, err := os.Stat(filepath.Join(dir, "b")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of b is still there: %v", err)
	}
}

func TestUp(t *testing.T) {
	base(t)
	d := create(t, "web")
	vm := find(t, "web")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if err := vm.WaitUp(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waited in vain: %v", err)
	}
	waited := make(chan error, 1)
	go func() { waited <- vm.WaitUp(t.Context()) }()
	type guest struct{ Kernel string }
	if err := d.SetUp(guest{"6.1"}); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
	var g guest
	if up, err := vm.Up(&g); !up || err != nil || g.Kernel != "6.1" {
		t.Errorf("up %v, %v, %+v", up, err, g)
	}
	for range 2 {
		if err := d.SetDown(); err != nil {
			t.Error(err)
		}
	}
	if up, err := vm.Up(nil); up || err != nil {
		t.Errorf("still up: %v", err)
	}
}

// TestLongPath has a base folder that is too deep for a socket's path.
func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep", 30))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GODWIT_RUNTIME_DIR", filepath.Join(dir, "run"))
	d := create(t, "web")
	l, err := net.Listen("unix", d.Path(VsockFile))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", find(t, "web").VsockPath())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// TestStrangersFolder: a base folder that others can write is not used.
func TestStrangersFolder(t *testing.T) {
	dir := base(t)
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	if _, err := Create("x"); err == nil || !errors.Is(err, ErrNotOwn) {
		t.Errorf("got %v", err)
	}
	if err := errors.Join(os.Remove(dir), os.Symlink(t.TempDir(), dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := Create("x"); err == nil {
		t.Error("followed a symbolic link")
	}
}

func TestLog(t *testing.T) {
	dir := base(t)
	d := create(t, "web")
	l, err := d.OpenLog(ConsoleFile)
	if err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	line := strings.Repeat("x", 99) + "\n"
	for i := range 5 * logLimit / len(line) {
		p := fmt.Sprintf("%06d%s", i, line[6:])
		all.WriteString(p)
		if _, err := l.Write([]byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	path := filepath.Join(dir, "web", ConsoleFile)
	older, err := os.ReadFile(path + ".1")
	if err != nil {
		t.Fatal(err)
	}
	latest, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	kept := append(older, latest...)
	if !bytes.HasSuffix(all.Bytes(), kept) || len(kept) < logLimit || len(kept) > 2*logLimit {
		t.Errorf("kept %d bytes of %d", len(kept), all.Len())
	}
}

func BenchmarkCreateAndClose(b *testing.B) {
	b.Setenv("GODWIT_RUNTIME_DIR", b.TempDir())
	for b.Loop() {
		d, err := CreateNumbered("vm", nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
