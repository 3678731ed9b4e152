package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/api/client"
	"github.com/godwit-vmm/godwit/internal/rundir"
)

// server is a "godwit vmm" that runs.
type server struct {
	*client.Client
	t              *testing.T
	cmd            *exec.Cmd
	socket         string
	stdout, stderr lockedBuffer
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// startServer starts "godwit vmm" and waits until it answers.
func startServer(t *testing.T, args ...string) *server {
	t.Helper()
	needKVM(t)
	s := &server{t: t, socket: filepath.Join(t.TempDir(), "api")}
	s.cmd = program(t, append([]string{"vmm", "--allow-software-kvm", "--api-sock", s.socket}, args...)...)
	s.cmd.Stdout, s.cmd.Stderr = &s.stdout, &s.stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.Client = client.New(s.socket)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		_, err := s.Info(t.Context())
		if err == nil {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not answer: %v\n%s", err, s.stderr.String())
		}
	}
}

func (s *server) must(method, path string, body any) {
	s.t.Helper()
	if err := s.Do(s.t.Context(), method, path, body, nil); err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
}

// end waits for the end and checks that nothing is left.
func (s *server) end(status int) {
	s.t.Helper()
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	if got := s.cmd.ProcessState.ExitCode(); got != status {
		s.t.Errorf("exit status %d, want %d: %s", got, status, s.stderr.String())
	}
	if _, err := os.Lstat(s.socket); !errors.Is(err, fs.ErrNotExist) {
		s.t.Errorf("the socket is left: %v", err)
	}
}

// object is a body.
type object = map[string]any

// TestVMM leads a guest through its life as a client of Firecracker does.
func TestVMM(t *testing.T) {
	elf, err := micro.Hello("hello\n", micro.Reset())
	kernel := microKernel(t, elf, err)
	s := startServer(t, "--id", "fc")
	if info, err := os.Stat(s.socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info.Mode(), err)
	}
	vm, err := rundir.Open("fc")
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	if info, err := client.New(vm.Path(rundir.APIFile)).Info(t.Context()); err != nil || info.ID != "fc" || info.State != client.NotStarted {
		t.Errorf("found by its name: %+v, %v", info, err)
	}
	uds := filepath.Join(t.TempDir(), "v")
	metrics := filepath.Join(t.TempDir(), "metrics")
	s.must("PUT", "/metrics", object{"metrics_path": metrics})
	s.must("PUT", "/machine-config", object{"vcpu_count": 1, "mem_size_mib": 32})
	s.must("PUT", "/vsock", object{"guest_cid": 3, "uds_path": uds})
	start := object{"action_type": "InstanceStart"}
	if err := s.Do(t.Context(), "PUT", "/actions", start, nil); err == nil || !strings.Contains(err.Error(), "without kernel") {
		t.Errorf("start without a kernel: %v", err)
	}
	s.must("PUT", "/boot-source", object{"kernel_image_path": kernel})
	s.must("PUT", "/actions", start)
	s.end(0) // a reset ends it, as Firecracker
	if got := s.stdout.String(); got != "hello\n" {
		t.Errorf("console: %q", got)
	}
	if _, err := rundir.Open("fc"); !errors.Is(err, rundir.ErrNotRunning) {
		t.Errorf("after its end: %v", err)
	}
	content, err := os.ReadFile(metrics)
	var line object
	if err := errors.Join(err, json.NewDecoder(bytes.NewReader(content)).Decode(&line)); err != nil || line["console"] == nil {
		t.Errorf("metrics: %v: %s", err, content)
	}
}

// TestVMMStartsAgain starts a guest that cannot be, with a socket that is moved, and
// then one that can.
func TestVMMStartsAgain(t *testing.T) {
	elf, err := micro.Spin()
	good := microKernel(t, elf, err)
	bad := microKernel(t, []byte("no kernel"), nil)
	s := startServer(t, "--id", "again")
	dir := t.TempDir()
	s.must("PUT", "/boot-source", object{"kernel_image_path": bad})
	s.must("PUT", "/vsock", object{"guest_cid": 3, "uds_path": filepath.Join(dir, "first")})
	start := object{"action_type": "InstanceStart"}
	if err := s.Do(t.Context(), "PUT", "/actions", start, nil); err == nil || !strings.Contains(err.Error(), "Start microvm error") {
		t.Errorf("start of no kernel: %v", err)
	}
	s.must("PUT", "/boot-source", object{"kernel_image_path": good})
	s.must("PUT", "/vsock", object{"guest_cid": 3, "uds_path": filepath.Join(dir, "second")})
	s.must("PUT", "/actions", start)
	vm, err := rundir.Open("again")
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	if got, want := vm.VsockPath(), filepath.Join(dir, "second"); got != want {
		t.Errorf("the vsock device is at %s, want %s", got, want)
	}
	if c, err := net.Dial("unix", filepath.Join(dir, "second")); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
	if err := s.Pause(t.Context()); err != nil {
		t.Error(err)
	}
	// A guest that does not listen, and stands still besides.
	for range 2 {
		if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); !strings.Contains(s.stderr.String(), "power button") && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
	}
	s.end(exitFailed)
}

// TestVMMFile starts guests by a configuration file.
func TestVMMFile(t *testing.T) {
	needKVM(t)
	elf, err := micro.Hello("hello\n", micro.PowerOff())
	good := fmt.Sprintf(`{"boot-source": {"kernel_image_path": %q}, "machine-config": {"vcpu_count": 1, "mem_size_mib": 32}}`, microKernel(t, elf, err))
	crash, err := micro.Fault()
	for name, tt := range map[string]struct {
		file string
		want result
	}{
		"good":      {good, result{"hello\n", "", 0}},
		"crash":     {fmt.Sprintf(`{"boot-source": {"kernel_image_path": %q}}`, microKernel(t, crash, err)), result{"", "the guest crashed", exitFailed}},
		"no kernel": {`{}`, result{"", "without kernel", exitFailed}},
		"no JSON":   {`{`, result{"", "EOF", exitFailed}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(path, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			got := runProgram(t, nil, "vmm", "--allow-software-kvm", "--config-file", path)
			if got.status != tt.want.status || got.stdout != tt.want.stdout || !strings.Contains(got.stderr, tt.want.stderr) {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestVMMSocket has sockets that are taken, and ones that are left over.
func TestVMMSocket(t *testing.T) {
	needKVM(t)
	dir := t.TempDir()
	file, live, stale := filepath.Join(dir, "file"), filepath.Join(dir, "live"), filepath.Join(dir, "stale")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", live)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	left, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	left.Close()
	for path, want := range map[string]string{
		file: "something else", live: "another process", dir + "/none/api": "no such file", dir + "/" + strings.Repeat("x", 120): "invalid argument",
	} {
		if got := runProgram(t, nil, "vmm", "--allow-software-kvm", "--api-sock", path); got.status != exitFailed || !strings.Contains(got.stderr, want) {
			t.Errorf("%s: %+v, want %q", path, got, want)
		}
	}
	for _, path := range []string{file, live} {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("what is not its own is gone: %v", err)
		}
	}
	first, err := listenAlone(stale)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := listenAlone(stale); err == nil {
		t.Error("two have the same socket")
		l.Close()
	}
	first.Close()
}

// TestVMMEndsUnstarted ends one that has no guest yet.
func TestVMMEndsUnstarted(t *testing.T) {
	s := startServer(t)
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.end(0)
}

// TestVMMInput types on the console of a guest that is not started yet, which does not
// disturb.
func TestVMMInput(t *testing.T) {
	elf, err := micro.Hello("hello\n", micro.PowerOff())
	path := filepath.Join(t.TempDir(), "config.json")
	config := fmt.Sprintf(`{"boot-source": {"kernel_image_path": %q}, "machine-config": {"vcpu_count": 1, "mem_size_mib": 32}}`, microKernel(t, elf, err))
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := runProgram(t, io.LimitReader(zeros{}, 1<<20), "vmm", "--allow-software-kvm", "--config-file", path); got != (result{"hello\n", "", 0}) {
		t.Errorf("%+v", got)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestDetach leaves a guest in the background as soon as it runs.
func TestDetach(t *testing.T) {
	needKVM(t)
	elf, err := micro.Spin()
	kernel := microKernel(t, elf, err)
	boot := []string{"boot", "--allow-software-kvm", "--memory", "32M", "--detach", "--kernel", kernel}
	got := runProgram(t, nil, append(boot, "--name", "left")...)
	if got != (result{"left\n", "", 0}) {
		t.Fatalf("%+v", got)
	}
	vm, err := rundir.Open("left")
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	t.Cleanup(func() { syscall.Kill(vm.PID, syscall.SIGKILL) })
	if info, err := client.New(vm.Path(rundir.APIFile)).Info(t.Context()); err != nil || info.State != client.Running || info.ID != "left" {
		t.Errorf("%+v, %v", info, err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{append(boot, "--name", "left"), "is running already"},
		{append(boot, "--wait"), "exclude each other"},
		{append(boot, "--initrd", kernel, "--", "true"), "godwit exec"},
		{[]string{"boot", "--allow-software-kvm", "--detach", "--kernel", "/no/such/kernel"}, "no such file"},
	} {
		if got := runProgram(t, nil, tt.args...); got.status != exitFailed || !strings.Contains(got.stderr, tt.want) || got.stdout != "" {
			t.Errorf("%v: %+v, want %q", tt.args, got, tt.want)
		}
	}
}
