package tests

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/kvm"
)

// What Firecracker's API answers to a request at the wrong time.
const (
	tooEarly = "The requested operation is not supported before starting the microVM."
	tooLate  = "The requested operation is not supported after starting the microVM."
)

// TestAPIByCurl has curl, which knows nothing of godwit, lead a guest through its life
// as Firecracker's documentation shows it ("Getting started", "Snapshotting"): two
// processes, of which the second goes on with what the first has saved. Between the
// requests that are good there are those that come at the wrong time.
func TestAPIByCurl(t *testing.T) {
	needsForCurl(t)
	dir := t.TempDir()
	binary := filepath.Join(dir, "godwit")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../cmd/godwit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// The words of the requests below.
	words := strings.NewReplacer(
		"KERNEL", waitingGuest(t, dir), "DISK", filepath.Join(dir, "rootfs.ext4"), "VSOCK", filepath.Join(dir, "v.sock"),
		"LOG", filepath.Join(dir, "log"), "SNAPSHOT", filepath.Join(dir, "snapshot"), "NONE", filepath.Join(dir, "none"))
	if err := os.WriteFile(filepath.Join(dir, "rootfs.ext4"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}

	first := startVMM(t, binary, words)
	first.requests(
		request{"GET", "/", "", 200, `"state":"Not started"`},
		request{"GET", "/version", "", 200, `"firecracker_version"`},
		request{"PUT", "/actions", `{"action_type": "InstanceStart"}`, 400, "Start microvm error: Cannot start microvm without kernel configuration."},
		request{"PATCH", "/vm", `{"state": "Paused"}`, 400, tooEarly},
		request{"PUT", "/snapshot/create", `{"snapshot_path": "SNAPSHOT", "mem_file_path": "SNAPSHOT/memory"}`, 400, tooEarly},

		request{"PUT", "/logger", `{"log_path": "LOG", "level": "Debug", "show_level": true, "show_log_origin": true}`, 204, ""},
		request{"PUT", "/boot-source", `{"kernel_image_path": "KERNEL", "boot_args": "console=ttyS0 reboot=k panic=1 pci=off"}`, 204, ""},
		request{"PUT", "/drives/rootfs", `{"drive_id": "rootfs", "path_on_host": "DISK", "is_root_device": true, "is_read_only": false}`, 204, ""},
		request{"PUT", "/network-interfaces/net1", `{"iface_id": "net1", "guest_mac": "06:00:AC:10:00:02", "host_dev_name": "tap0"}`, 204, ""},
		request{"PUT", "/vsock", `{"guest_cid": 3, "uds_path": "VSOCK"}`, 204, ""},
		request{"PUT", "/entropy", `{}`, 204, ""},
		request{"PUT", "/balloon", `{"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1}`, 204, ""},
		request{"PUT", "/machine-config", `{"vcpu_count": 2, "mem_size_mib": 64}`, 204, ""},
		request{"GET", "/machine-config", "", 200, `"vcpu_count":2,"mem_size_mib":64`},
		request{"GET", "/vm/config", "", 200, `"host_dev_name":"tap0"`},
		request{"PUT", "/boot-source", `{"kernel_image_path": "NONE"}`, 400, "no such file"},
		request{"PUT", "/drives/rootfs", `{"drive_id": "other", "path_on_host": "DISK", "is_root_device": true}`, 400, "does not match the id from the body"},
		request{"PUT", "/machine-config", `{"vcpu_count": 2`, 400, "An error occurred when deserializing the json body of a request"},
		request{"PUT", "/machine-config", `{"vcpu_count": 2, "mem_size_mib": 64, "mem_size_gib": 1}`, 400, "unknown field"},
		request{"PUT", "/snapshot/load", `{"snapshot_path": "SNAPSHOT", "mem_backend": {"backend_type": "File", "backend_path": "SNAPSHOT/memory"}}`, 400,
			"Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."},

		request{"PUT", "/actions", `{"action_type": "InstanceStart"}`, 204, ""},
		request{"GET", "/", "", 200, `"state":"Running"`},
	)
	first.said(ready)
	first.requests(
		request{"PUT", "/actions", `{"action_type": "InstanceStart"}`, 400, tooLate},
		request{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 64}`, 400, tooLate},
		request{"PUT", "/boot-source", `{"kernel_image_path": "KERNEL"}`, 400, tooLate},
		request{"PUT", "/drives/data", `{"drive_id": "data", "path_on_host": "DISK", "is_root_device": false}`, 400, tooLate},
		request{"PUT", "/network-interfaces/net2", `{"iface_id": "net2", "host_dev_name": "tap1"}`, 400, tooLate},
		request{"PUT", "/snapshot/load", `{"snapshot_path": "SNAPSHOT", "mem_backend": {"backend_type": "File", "backend_path": "SNAPSHOT/memory"}}`, 400, tooLate},
		request{"PUT", "/snapshot/create", `{"snapshot_path": "SNAPSHOT", "mem_file_path": "SNAPSHOT/memory"}`, 400, "pause it before"},
		request{"PATCH", "/vm", `{"state": "Stopped"}`, 400, "want Paused or Resumed"},

		request{"PATCH", "/vm", `{"state": "Paused"}`, 204, ""},
		request{"GET", "/", "", 200, `"state":"Paused"`},
		request{"PATCH", "/vm", `{"state": "Resumed"}`, 204, ""},
		request{"GET", "/", "", 200, `"state":"Running"`},
		request{"PATCH", "/vm", `{"state": "Paused"}`, 204, ""},
		request{"PUT", "/snapshot/create", `{"snapshot_type": "Full", "snapshot_path": "SNAPSHOT", "mem_file_path": "SNAPSHOT/memory"}`, 204, ""},
		request{"PUT", "/snapshot/create", `{"snapshot_type": "Full", "snapshot_path": "SNAPSHOT", "mem_file_path": "SNAPSHOT/memory"}`, 400, "exists"},
		request{"GET", "/", "", 200, `"state":"Paused"`},
	)
	first.kill()

	second := startVMM(t, binary, words)
	second.requests(
		request{"PUT", "/snapshot/load", `{"snapshot_path": "NONE", "mem_backend": {"backend_type": "File", "backend_path": "NONE/memory"}, "resume_vm": true}`, 400, "Load snapshot error: "},
		request{"PUT", "/snapshot/load", `{"snapshot_path": "SNAPSHOT", "mem_file_path": "SNAPSHOT/memory", "mem_backend": {"backend_type": "File", "backend_path": "SNAPSHOT/memory"}}`, 400, "too many fields"},
		request{"GET", "/", "", 200, `"state":"Not started"`},
		request{"PUT", "/snapshot/load", `{"snapshot_path": "SNAPSHOT", "mem_backend": {"backend_type": "File", "backend_path": "SNAPSHOT/memory"}, "resume_vm": true, "clock_realtime": true,
			"network_overrides": [{"iface_id": "net1", "host_dev_name": "tap7"}], "vsock_override": {"uds_path": "VSOCK.2"}}`, 204, ""},
		request{"GET", "/", "", 200, `"state":"Running"`},
		request{"GET", "/vm/config", "", 200, `"host_dev_name":"tap7"`},
		request{"PUT", "/snapshot/load", `{"snapshot_path": "SNAPSHOT", "mem_backend": {"backend_type": "File", "backend_path": "SNAPSHOT/memory"}}`, 400, tooLate},
		request{"PUT", "/actions", `{"action_type": "InstanceStart"}`, 400, tooLate},
		request{"PUT", "/boot-source", `{"kernel_image_path": "KERNEL"}`, 400, tooLate},
	)
	second.enter("\n")
	second.said(again)
	second.powersOff()
}

// needsForCurl says what TestAPIByCurl does not find here.
func needsForCurl(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		testenv.Lacks(t, "%v: install curl", err)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		testenv.Lacks(t, "%v", err)
	}
	sys, err := kvm.Open("")
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	sys.Close()
}

// What the guest of the test writes to its console.
const (
	ready = "ready\n"
	again = "again\n"
)

// waitingGuest makes a kernel that writes a word to its memory, says that it is ready,
// waits for a key, and says so if its memory is as it was; else it crashes.
func waitingGuest(t *testing.T, dir string) string {
	t.Helper()
	const (
		data, modemControl, lineStatus = 0x3f8, 0x3fc, 0x3fd
		requestToSend, received        = 1 << 1, 1 << 0
		place, word                    = 32 << 20, 0x60d417
	)
	var a micro.Asm
	say := func(text string) {
		a.MovImm(micro.RDX, data)
		for _, c := range []byte(text) {
			a.MovImm(micro.RAX, uint64(c))
			a.Out(micro.Byte)
		}
	}
	a.MovImm(micro.RBX, place)
	a.MovImm(micro.RCX, word)
	a.Store(micro.Quad, micro.Mem{Base: micro.RBX}, micro.RCX)
	a.MovImm(micro.RDX, modemControl)
	a.MovImm(micro.RAX, requestToSend)
	a.Out(micro.Byte)
	say(ready)
	a.MovImm(micro.RDX, lineStatus)
	wait := a.Here()
	a.In(micro.Byte)
	a.TestImm(micro.RAX, received)
	a.Jcc(micro.Equal, wait)
	good := a.NewLabel()
	a.OpMem(micro.Cmp, micro.RCX, micro.Mem{Base: micro.RBX})
	a.Jcc(micro.Equal, good)
	a.Ud2()
	a.Bind(good)
	say(again)
	for _, w := range micro.PowerOff() {
		a.MovImm(micro.RDX, uint64(w.Port))
		a.MovImm(micro.RAX, uint64(w.Value))
		a.Out(w.Width)
	}
	a.Jmp(a.Here())
	code, err := a.Assemble()
	if err != nil {
		t.Fatal(err)
	}
	elf, err := micro.Program{Code: code}.ELF()
	path := filepath.Join(dir, "guest.elf")
	if err = errors.Join(err, os.WriteFile(path, elf, 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

// curled is a "godwit vmm" that curl controls.
type curled struct {
	t      *testing.T
	ctx    context.Context
	cmd    *exec.Cmd
	socket string
	words  *strings.Replacer
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr strings.Builder
}

// startVMM starts "godwit vmm" in a network of its own, where it may make tap
// interfaces, and waits until it can be connected to.
func startVMM(t *testing.T, binary string, words *strings.Replacer) *curled {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	t.Cleanup(cancel)
	g := &curled{t: t, ctx: ctx, socket: filepath.Join(t.TempDir(), "api.sock"), words: words}
	g.cmd = exec.CommandContext(ctx, binary, "vmm", "--api-sock", g.socket, "--allow-software-kvm")
	g.cmd.Env = append(os.Environ(), "GODWIT_RUNTIME_DIR="+t.TempDir())
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		g.cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		g.cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		g.cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	g.cmd.Stderr = &g.stderr
	var err error
	if g.stdin, err = g.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := g.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	g.stdout = bufio.NewReader(stdout)
	if err := g.cmd.Start(); errors.Is(err, os.ErrPermission) {
		testenv.Lacks(t, "a network of its own takes privileges: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.kill)
	for {
		c, err := net.Dial("unix", g.socket)
		if err == nil {
			c.Close()
			return g
		}
		select {
		case <-ctx.Done():
			g.fatalf("it makes no socket: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
}

// fatalf ends the test with what the process has said.
func (g *curled) fatalf(format string, args ...any) {
	g.t.Helper()
	g.kill()
	g.t.Fatalf("%s\nstderr:\n%s", fmt.Sprintf(format, args...), g.stderr.String())
}

// kill ends the process if it still runs, and waits for its end.
func (g *curled) kill() {
	if g.cmd.ProcessState == nil {
		_ = g.cmd.Process.Kill()
		_ = g.cmd.Wait()
	}
}

// request is what curl sends, and what has to come back: a status, and with 400 a
// fault_message, else a body, that has want in it.
type request struct {
	method, path, body string
	status             int
	want               string
}

// requests sends requests one after the other.
func (g *curled) requests(all ...request) {
	g.t.Helper()
	for _, r := range all {
		status, body := g.curl(r)
		text := body
		if r.status == 400 {
			var fault map[string]string
			if err := json.Unmarshal([]byte(body), &fault); err != nil || len(fault) != 1 {
				g.fatalf("%s %s %s: %d, %q: want one fault_message", r.method, r.path, r.body, status, body)
			}
			text = fault["fault_message"]
		}
		if status != r.status || !strings.Contains(text, r.want) || r.status == 204 && body != "" {
			g.fatalf("%s %s %s: %d, %q: want %d with %q", r.method, r.path, r.body, status, body, r.status, r.want)
		}
	}
}

// curl sends one request with the options that Firecracker's documentation gives.
func (g *curled) curl(r request) (status int, body string) {
	g.t.Helper()
	args := []string{
		"--silent", "--show-error", "--write-out", "\n%{http_code}", "--unix-socket", g.socket,
		"-X", r.method, "http://localhost" + r.path, "-H", "Accept: application/json",
	}
	if r.body != "" {
		args = append(args, "-H", "Content-Type: application/json", "-d", g.words.Replace(r.body))
	}
	out, err := exec.CommandContext(g.ctx, "curl", args...).Output()
	if err != nil {
		g.fatalf("curl %s %s: %v", r.method, r.path, err)
	}
	end := strings.LastIndexByte(string(out), '\n')
	if _, err := fmt.Sscan(string(out[end+1:]), &status); err != nil {
		g.fatalf("curl %s %s: %q: %v", r.method, r.path, out, err)
	}
	return status, strings.TrimSuffix(string(out[:end]), "\n")
}

// enter types on the guest's console.
func (g *curled) enter(keys string) {
	g.t.Helper()
	if _, err := io.WriteString(g.stdin, keys); err != nil {
		g.fatalf("type on the console: %v", err)
	}
}

// said waits until the guest has said a line on its console.
func (g *curled) said(line string) {
	g.t.Helper()
	if got, err := g.stdout.ReadString('\n'); got != line {
		g.fatalf("console: %q, %v, want %q", got, err, line)
	}
}

// powersOff waits until the process ends because its guest has.
func (g *curled) powersOff() {
	g.t.Helper()
	rest, err := io.ReadAll(g.stdout)
	if err = errors.Join(err, g.cmd.Wait()); err != nil || len(rest) > 0 {
		g.fatalf("at the end: %v, and %q on the console", err, rest)
	}
	if _, err := os.Lstat(g.socket); !errors.Is(err, os.ErrNotExist) {
		g.t.Errorf("the socket is left: %v", err)
	}
}
