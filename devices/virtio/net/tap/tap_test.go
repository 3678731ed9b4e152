package tap

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/internal/testenv"
)

// newNamespace puts the test into a network namespace of its own.
func newNamespace(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		testenv.Lacks(t, "making tap interfaces needs root")
	}
	if _, err := os.Stat(device); err != nil {
		testenv.Lacks(t, "no tap interfaces here: %v", err)
	}
	// Without Unlock: the thread ends with the test.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, command string) {
	t.Helper()
	words := strings.Fields(command)
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
}

func TestOpen(t *testing.T) {
	for _, test := range []struct {
		name   string
		before string // a command
		c      Config
		link   string
		mtu    int
		stays  bool
	}{
		{"new", "", Config{}, "godwit0", 1500, false},
		{"new with a name", "", Config{Name: "vm7"}, "vm7", 1500, false},
		{"several queues", "", Config{Name: "vm7", Queues: 4}, "vm7", 1500, false},
		{"MTU", "", Config{Name: "vm7", MTU: 9000}, "vm7", 9000, false},
		{"there before", "ip tuntap add vm7 mode tap", Config{Name: "vm7"}, "vm7", 1500, true},
		{"there with several queues", "ip tuntap add vm7 mode tap multi_queue", Config{Name: "vm7", Queues: 2}, "vm7", 1500, true},
		{"one of several queues", "ip tuntap add vm7 mode tap multi_queue", Config{Name: "vm7"}, "vm7", 1500, true},
		{"bridge", "ip link add br0 type bridge", Config{Bridge: "br0"}, "godwit0", 1500, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			newNamespace(t)
			if test.before != "" {
				run(t, test.before)
			}
			b, err := Open(test.c)
			if err != nil {
				t.Fatal(err)
			}
			if b.Name() != test.link || b.MTU() != test.mtu || len(b.Descriptors()) != max(test.c.Queues, 1) {
				t.Errorf("interface %s, MTU %d, %d queues", b.Name(), b.MTU(), len(b.Descriptors()))
			}
			link, err := net.InterfaceByName(test.link)
			if err != nil {
				t.Fatal(err)
			}
			if link.Flags&net.FlagUp == 0 || link.MTU != test.mtu {
				t.Errorf("the host's interface: %+v", link)
			}
			if test.c.Bridge != "" {
				out, err := exec.Command("ip", "link", "show", "master", test.c.Bridge).Output()
				if err != nil || !strings.Contains(string(out), test.link) {
					t.Errorf("ports of the bridge: %s, %v", out, err)
				}
				if !strings.Contains(string(out), "link/ether fe:") {
					t.Errorf("the bridge may take the address of its port for its own: %s", out)
				}
			}
			for _, o := range []uint32{offloads, 0, unix.TUN_F_CSUM} {
				if err := b.SetOffloads(o); err != nil {
					t.Error(err)
				}
			}
			for n := range b.Descriptors() {
				if err := b.SetPairs(n + 1); err != nil {
					t.Error(err)
				}
			}
			if err := b.SetPairs(1); err != nil {
				t.Error(err)
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := net.InterfaceByName(test.link); (err == nil) != test.stays {
				t.Errorf("after Close: %v, want it to stay: %v", err, test.stays)
			}
		})
	}
}

func TestOpenErrors(t *testing.T) {
	for _, test := range []struct {
		name   string
		before string
		c      Config
		want   error
		say    string
	}{
		{"long name", "", Config{Name: "abcdefghijklmnop"}, nil, "at most 15"},
		{"not a tap", "ip link add vm7 type bridge", Config{Name: "vm7"}, unix.EINVAL, "no tap interface"},
		{"fewer queues", "ip tuntap add vm7 mode tap", Config{Name: "vm7", Queues: 2}, unix.EINVAL, "multi_queue"},
		{"no bridge", "", Config{Bridge: "br7"}, unix.ENODEV, "ip link add br7 type bridge"},
		{"not a bridge", "", Config{Bridge: "lo"}, unix.EOPNOTSUPP, "no bridge lo"},
		{"MTU", "", Config{MTU: 1 << 20}, unix.EINVAL, "MTU to 1048576"},
		{"too many queues", "", Config{Queues: 257}, unix.E2BIG, "257 queues"},
	} {
		t.Run(test.name, func(t *testing.T) {
			newNamespace(t)
			if test.before != "" {
				run(t, test.before)
			}
			b, err := Open(test.c)
			if err == nil {
				b.Close()
				t.Fatal("no error")
			}
			if test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.say) {
				t.Errorf("error %q, want %v and %q in it", err, test.want, test.say)
			}
			if _, err := net.InterfaceByName("godwit0"); err == nil {
				t.Error("a new interface was left behind")
			}
		})
	}
}

func TestBusy(t *testing.T) {
	newNamespace(t)
	b, err := Open(Config{Name: "vm7"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := Open(Config{Name: "vm7"}); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "another program") {
		t.Errorf("error %v, want %v", err, unix.EBUSY)
	}
}

// TestUnprivileged opens interfaces as a user without capabilities: one that
// was made for the user, and others.
func TestUnprivileged(t *testing.T) {
	newNamespace(t)
	const user = 65534
	run(t, "ip tuntap add vm7 mode tap user 65534")
	run(t, "ip link set vm7 up")
	run(t, "ip tuntap add vm8 mode tap user 65534") // which is down
	openDevice(t)
	// This thread only, and not the process: it ends with the test.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, user, user, user); errno != 0 {
		t.Fatal(errno)
	}
	b, err := Open(Config{Name: "vm7"})
	if err != nil {
		t.Fatalf("an interface made for the user: %v", err)
	}
	defer b.Close()
	if err := b.SetOffloads(offloads); err != nil {
		t.Error(err)
	}
	if _, err := Open(Config{}); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "ip tuntap add vm0 mode tap user") {
		t.Errorf("a new interface: %v", err)
	}
	if _, err := Open(Config{Name: "vm8"}); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "ip link set vm8 up") {
		t.Errorf("an interface that is down: %v", err)
	}
}

// openDevice makes the device one that everybody may open, as it is on most
// hosts, for this thread.
func openDevice(t *testing.T) {
	t.Helper()
	dir := filepath.Dir(device)
	if err := errors.Join(
		unix.Unshare(unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
		unix.Mount("tmpfs", dir, "tmpfs", 0, ""),
		unix.Mknod(device, unix.S_IFCHR, int(unix.Mkdev(10, 200))),
		unix.Chmod(dir, 0o755),
		unix.Chmod(device, 0o666),
	); err != nil {
		t.Fatalf("a device for everybody: %v", err)
	}
}

func TestNoAccess(t *testing.T) {
	newNamespace(t)
	openDevice(t)
	if err := os.Chmod(device, 0o600); err != nil {
		t.Fatal(err)
	}
	const user = 65534
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, user, user, user); errno != 0 {
		t.Fatal(errno)
	}
	if _, err := Open(Config{}); !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), "--net user") {
		t.Errorf("without access to %s: %v", device, err)
	}
}

func TestNoDevice(t *testing.T) {
	newNamespace(t)
	openDevice(t)
	if err := os.Remove(device); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{}); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "modprobe tun") {
		t.Errorf("without %s: %v", device, err)
	}
}
