package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest"
	"github.com/godwit-vmm/godwit/guest/agent"
	"github.com/godwit-vmm/godwit/internal/testenv"
)

// needLab skips a test where no host can be started.
func needLab(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots emulated hosts, which takes seconds: not with -short")
	}
	if _, err := exec.LookPath(emulator); err != nil {
		testenv.Lacks(t, "%s is not installed", emulator)
	}
	if _, err := guest.CachedKernel(); errors.Is(err, guest.ErrNotCached) {
		testenv.Lacks(t, "no cached kernel: make guest")
	}
}

func start(t *testing.T, o Options) *Host {
	t.Helper()
	begin := time.Now()
	h, err := Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	t.Logf("%s is up after %v", h.Name(), time.Since(begin).Round(time.Millisecond))
	return h
}

func output(t *testing.T, h *Host, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	status, err := h.Run(context.Background(), Cmd{Args: args, Stdout: &out, Stderr: &errs})
	if err != nil || status != 0 {
		t.Fatalf("%v: status %d, %v, %s", args, status, err, errs.String())
	}
	return strings.TrimSpace(out.String())
}

func TestHost(t *testing.T) {
	needLab(t)
	content := filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(content, bytes.Repeat([]byte("0123456789"), 10000), 0o640); err != nil {
		t.Fatal(err)
	}
	h := start(t, Options{CPUs: 2, MemoryMiB: 1024, Files: []File{
		{To: "/opt/new/file", From: content},
		{To: "/opt/link", Link: "new/file"},
	}})

	t.Run("virtualization", func(t *testing.T) {
		for _, file := range []string{"/dev/kvm", "/dev/net/tun", "/dev/vhost-net", "/sys/module/kvm_amd"} {
			output(t, h, "ls", file)
		}
		if thp := output(t, h, "cat", "/sys/kernel/mm/transparent_hugepage/shmem_enabled"); !strings.Contains(thp, "[advise]") {
			t.Errorf("huge pages for shared memory: %s", thp)
		}
	})
	t.Run("size", func(t *testing.T) {
		if n := output(t, h, "nproc"); n != "2" {
			t.Errorf("%s CPUs", n)
		}
		var kib int
		if _, err := fmt.Sscanf(output(t, h, "grep", "MemTotal", "/proc/meminfo"), "MemTotal: %d", &kib); err != nil || kib < 900<<10 || kib > 1024<<10 {
			t.Errorf("%d KiB of memory, %v", kib, err)
		}
	})
	t.Run("files", func(t *testing.T) {
		got := filepath.Join(t.TempDir(), "got")
		if err := h.Get(context.Background(), "/opt/link", got); err != nil {
			t.Fatal(err)
		}
		if err := h.Put(context.Background(), got, "/tmp/again"); err != nil {
			t.Fatal(err)
		}
		output(t, h, "cmp", "/tmp/again", "/opt/new/file")
		if info, err := os.Stat(got); err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("%v, %v", info, err)
		}
	})
	t.Run("many commands at once", func(t *testing.T) {
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				var out bytes.Buffer
				status, err := h.Run(context.Background(), Cmd{
					Args:   []string{"sh", "-c", fmt.Sprintf("cat; exit %d", i)},
					Stdin:  strings.NewReader(fmt.Sprint(i)),
					Stdout: &out,
				})
				if err != nil || status != i || out.String() != fmt.Sprint(i) {
					t.Errorf("command %d: status %d, %q, %v", i, status, out.String(), err)
				}
			})
		}
		all.Wait()
	})
	t.Run("orphans are reaped", func(t *testing.T) {
		output(t, h, "sh", "-c", "sh -c 'true & exec true'")
		if out := output(t, h, "sh", "-c", "cat /proc/[0-9]*/stat | grep ') Z 1 ' || true"); out != "" {
			t.Errorf("zombies:\n%s", out)
		}
	})
	t.Run("a host that ends", func(t *testing.T) {
		// The host ends its processes before itself: this one may still
		// get to say how it ended.
		if _, err := h.Run(context.Background(), Cmd{Args: []string{"poweroff"}}); err != nil && !errors.Is(err, agent.ErrClosed) {
			t.Errorf("its command ends with %v", err)
		}
		<-h.Done()
		if _, err := h.Run(context.Background(), Cmd{Args: []string{"true"}}); !errors.Is(err, agent.ErrClosed) {
			t.Errorf("the next command ends with %v", err)
		}
	})
	h.Close()
	if _, err := os.Stat(h.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder is still there: %v", err)
	}
}

func TestHostsOnANetwork(t *testing.T) {
	needLab(t)
	network := NewNetwork()
	h1 := start(t, Options{Number: 1, CPUs: 1, MemoryMiB: 512, Network: network})
	h2 := start(t, Options{Number: 2, CPUs: 1, MemoryMiB: 512, Network: network})
	output(t, h1, "ping", "-c", "2", "h2")
	// Enough to fill every queue on the way.
	const size = 4 << 20
	received := make(chan string)
	go func() {
		received <- output(t, h2, "sh", "-c", "netcat -l 10.77.0.2 9000 | wc -c")
	}()
	output(t, h1, "sh", "-c", fmt.Sprintf("for i in 1 2 3 4 5 6 7 8 9; do head -c %d /dev/zero | netcat h2 9000 && exit 0; sleep 0.3; done; exit 1", size))
	if n := <-received; n != fmt.Sprint(size) {
		t.Errorf("%s bytes of %d came over", n, size)
	}
}

// A host that does not boot must say what its console said.
func TestBootFailureShowsTheConsole(t *testing.T) {
	needLab(t)
	kernel, err := guest.CachedKernel()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	broken := guest.Kernel{Version: kernel.Version, Path: filepath.Join(dir, "vmlinuz"), ModulesDir: kernel.ModulesDir}
	if err := os.Symlink(kernel.Path, broken.Path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(broken.Image(guest.HostImage), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = Start(context.Background(), Options{Kernel: broken, MemoryMiB: 512, CPUs: 1})
	if err == nil || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("got %v", err)
	}
}

func TestStartErrors(t *testing.T) {
	kernel := guest.Kernel{Version: "x", Path: filepath.Join(t.TempDir(), "vmlinuz")}
	tests := map[string]struct {
		options Options
		want    string
	}{
		"number":   {Options{Number: MaxHosts + 1}, "1 to 64"},
		"CPUs":     {Options{CPUs: 1000}, "1 to 255"},
		"memory":   {Options{MemoryMiB: 1}, "at least 256"},
		"no image": {Options{Kernel: kernel}, "make guest"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Start(context.Background(), test.options)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want something with %q", err, test.want)
			}
		})
	}
	t.Run("no QEMU", func(t *testing.T) {
		if err := os.WriteFile(kernel.Image(guest.HostImage), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", "")
		_, err := Start(context.Background(), Options{Kernel: kernel})
		if err == nil || !strings.Contains(err.Error(), "apt-get install qemu-system-x86") {
			t.Errorf("got %v", err)
		}
	})
}

func TestStartEndsWithItsContext(t *testing.T) {
	needLab(t)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := Start(ctx, Options{MemoryMiB: 512}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

// roleEnv makes the test program something else: a process that holds hosts, says
// that they are up, and waits to be killed.
const roleEnv = "GODWIT_LAB_TEST_ROLE"

func TestMain(m *testing.M) {
	var err error
	o := Options{MemoryMiB: 512, CPUs: 1}
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "orphan":
		var h *Host
		if h, err = Start(context.Background(), o); err == nil {
			fmt.Println(h.machine.process.Pid)
			io.Copy(io.Discard, os.Stdin)
		}
	case "keeper":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		err = Keep(ctx, "test", 2, o, 0, func(Group) { fmt.Println(os.Getpid()) })
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// startRole starts this program in a role and gives it with the number that it
// says.
func startRole(t *testing.T, role string) (*exec.Cmd, int) {
	t.Helper()
	self := exec.Command(os.Args[0])
	self.Env = append(os.Environ(), roleEnv+"="+role)
	stdin, err := self.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := self.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		self.Process.Kill()
		stdin.Close()
		self.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(line, &pid); err != nil {
		t.Fatal(line)
	}
	return self, pid
}

// awaitEnd waits until there is no such process.
func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	process, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); process.Signal(syscall.Signal(0)) == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			process.Kill()
			t.Fatalf("process %d still runs", pid)
		}
	}
}

func TestNoOrphanWhenKilled(t *testing.T) {
	needLab(t)
	self, qemu := startRole(t, "orphan")
	self.Process.Kill()
	awaitEnd(t, qemu)
}

func TestGroup(t *testing.T) {
	needLab(t)
	// Sockets need short paths.
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	t.Setenv("XDG_RUNTIME_DIR", dir)

	if _, err := Find("test/h1"); !errors.Is(err, errNotUp) {
		t.Errorf("find in a lab that is not up: %v", err)
	}
	keeper, pid := startRole(t, "keeper")
	groups, err := Groups()
	if err != nil || len(groups) != 1 || groups[0].Name != "test" || groups[0].PID != pid || len(groups[0].Hosts) != 2 {
		t.Fatalf("groups %+v, %v", groups, err)
	}
	if err := Keep(context.Background(), "test", 1, Options{}, 0, nil); err == nil || !strings.Contains(err.Error(), "up already") {
		t.Errorf("the same lab again: %v", err)
	}
	if _, err := Find("test/h3"); err == nil || !strings.Contains(err.Error(), "h1, h2") {
		t.Errorf("find a third host: %v", err)
	}
	host, err := Find("test/h2")
	if err != nil {
		t.Fatal(err)
	}
	// More at once than one connection, as other processes would.
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			client, err := Connect(context.Background(), host)
			if err != nil {
				t.Error(err)
				return
			}
			defer client.Close()
			var out bytes.Buffer
			exit, err := client.Run(context.Background(), Cmd{Args: []string{"hostname"}, Stdout: &out})
			if err != nil || exit.Status() != 0 || out.String() != "h2\n" {
				t.Errorf("%v, %v, %q", exit, err, out.String())
			}
		})
	}
	all.Wait()

	// A keeper that is killed takes its hosts along; what it leaves is
	// removed by whoever looks next.
	keeper.Process.Kill()
	keeper.Wait()
	if groups, err := Groups(); err != nil || len(groups) != 0 {
		t.Errorf("groups after that %+v, %v", groups, err)
	}
	if _, err := os.Stat(host.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder is still there: %v", err)
	}
	if err := Down("test"); !errors.Is(err, errNotUp) {
		t.Errorf("down: %v", err)
	}

	keeper, _ = startRole(t, "keeper")
	if err := Down("test"); err != nil {
		t.Errorf("down: %v", err)
	}
	if err := keeper.Wait(); err != nil {
		t.Errorf("the keeper ends with %v", err)
	}
	if _, err := os.Stat(host.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder is still there: %v", err)
	}
}

func TestGroupNames(t *testing.T) {
	for _, name := range []string{"", "..", "a/b", "A", strings.Repeat("x", 25), "-a"} {
		if checkGroupName(name) == nil {
			t.Errorf("%q was taken for the name of a lab", name)
		}
	}
	if err := checkGroupName("lab-2"); err != nil {
		t.Error(err)
	}
}
