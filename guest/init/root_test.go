package main

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"golang.org/x/sys/unix"
)

func TestMountOptions(t *testing.T) {
	for options, want := range map[string]struct {
		flags uintptr
		data  string
	}{
		"":                                {0, ""},
		"noatime":                         {unix.MS_NOATIME, ""},
		"data=journal,nodev,commit=5,,ro": {unix.MS_NODEV | unix.MS_RDONLY, "data=journal,commit=5"},
	} {
		if flags, data := parseMountOptions(options); flags != want.flags || data != want.data {
			t.Errorf("%q: %#x %q, want %+v", options, flags, data, want)
		}
	}
}

func TestBlockTypes(t *testing.T) {
	list := "nodev\tsysfs\nnodev\ttmpfs\n\text3\n\text2\n\text4\nnodev\tproc\n\tvfat\n"
	if got, want := blockTypes(list), []string{"ext4", "squashfs", "ext3", "ext2", "vfat"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestSuperblock(t *testing.T) {
	mkfs, err := exec.LookPath("/usr/sbin/mkfs.ext4")
	if err != nil {
		testenv.Lacks(t, "mkfs.ext4 is not installed")
	}
	image := filepath.Join(t.TempDir(), "image")
	const uuid = "01234567-89ab-cdef-0123-456789abcdef"
	if out, err := exec.Command(mkfs, "-q", "-L", "sixteen letters!", "-U", uuid, image, "8M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if s, err := readSuperblock(image); err != nil || s != (superblock{uuid, "sixteen letters!"}) {
		t.Errorf("%+v, %v", s, err)
	}
	other := filepath.Join(t.TempDir(), "other")
	for _, content := range []string{"", strings.Repeat("x", 4096)} {
		if err := os.WriteFile(other, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := readSuperblock(other); err == nil {
			t.Errorf("%d bytes: %+v", len(content), s)
		}
	}
}

func TestRootDevice(t *testing.T) {
	for _, spec := range []string{"nonsense", "UUID=", "LABEL=", "/dev/../etc", "/dev/disk/by-uuid/x", "PARTUUID=1"} {
		if _, err := finder(spec); err == nil {
			t.Errorf("%q is a root device", spec)
		}
	}
	for _, spec := range []string{"/dev/null", "/dev/no-such-disk", "LABEL=no such label", "UUID=no-such-uuid"} {
		find, err := finder(spec)
		if err != nil {
			t.Errorf("%s: %v", spec, err)
		} else if found := find(); found != "" {
			t.Errorf("%s is %s", spec, found)
		}
	}
	start := time.Now()
	if _, err := waitForDevice("/dev/no-such-disk", 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), "no such device") {
		t.Error(err)
	}
	if waited := time.Since(start); waited < 50*time.Millisecond {
		t.Errorf("it waited %v", waited)
	}
}

func TestDiskMounts(t *testing.T) {
	const mountinfo = `22 30 0:20 / /proc rw,nosuid - proc proc rw
30 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 30 0:24 / /run rw - tmpfs tmpfs rw,mode=755
40 30 254:16 / /mnt/a\040b ro,relatime shared:1 - ext4 /dev/vdb rw,errors=continue
41 30 254:0 /home /bind rw - ext4 /dev/vda rw
42 30 254:32 / /cd rw - iso9660 /dev/vdc ro
43 30 254:48 / /short
`
	if got, want := diskMounts(mountinfo), []string{"/", "/mnt/a b"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestOpenProcesses waits for the end of a process. Ending all that there are is
// for a guest.
func TestOpenProcesses(t *testing.T) {
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(child.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	start := time.Now()
	awaitAll([]int{fd}, 20*time.Millisecond)
	if waited := time.Since(start); waited < 20*time.Millisecond {
		t.Errorf("a process that runs counts as ended, after %v", waited)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	awaitAll([]int{fd}, time.Minute)
	if waited := time.Since(start); waited > 30*time.Second {
		t.Errorf("the end of a process was noticed after %v", waited)
	}
	child.Wait()
	running, err := openProcesses()
	if err != nil || len(running) == 0 {
		t.Errorf("%d processes, %v", len(running), err)
	}
	for _, fd := range running {
		unix.Close(fd)
	}
}

var mac = [6]byte{0x52, 0x54, 0, 1, 2, 3}

// reply is a message of a server with options as they are on the wire.
func reply(id uint32, options ...byte) []byte {
	b := make([]byte, dhcpOptionsAt)
	b[0] = 2
	binary.BigEndian.PutUint32(b[dhcpIDAt:], id)
	copy(b[dhcpYoursAt:], []byte{10, 0, 2, 15})
	copy(b[dhcpMACAt:], mac[:])
	binary.BigEndian.PutUint32(b[dhcpOptionsAt-4:], dhcpMagic)
	return append(b, options...)
}

func TestDHCPReply(t *testing.T) {
	addr := netip.MustParseAddr
	got, err := parseReply(reply(7, 53, 1, 5, 0, 0, 1, 4, 255, 255, 240, 0, 3, 4, 10, 0, 2, 2, 6, 8, 10, 0, 2, 3, 8, 8, 8, 8,
		15, 7, 'e', 'x', '.', 'o', 'r', 'g', 0x20, 26, 2, 5, 0, 51, 4, 0, 0, 0, 60, 54, 4, 10, 0, 2, 1, 255, 53, 1, 9), 7, mac)
	want := dhcpReply{kind: dhcpAck, server: addr("10.0.2.1"), lease: lease{
		address: netip.MustParsePrefix("10.0.2.15/20"), router: addr("10.0.2.2"),
		dns: []netip.Addr{addr("10.0.2.3"), addr("8.8.8.8")}, mtu: 1280, duration: time.Minute,
	}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if text := resolvConf(lease{dns: want.dns, domain: "ex.org"}); text != "search ex.org\nnameserver 10.0.2.3\nnameserver 8.8.8.8\n" {
		t.Errorf("resolv.conf is %q", text)
	}
	for name, b := range map[string][]byte{
		"another's": reply(8), "a request": append([]byte{1}, reply(7)[1:]...), "short": reply(7)[:dhcpOptionsAt-1], "nothing": nil,
	} {
		if r, err := parseReply(b, 7, mac); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if _, err := parseReply(reply(7), 7, [6]byte{}); err == nil {
		t.Error("an answer to another client")
	}
}

func TestDHCPRequest(t *testing.T) {
	r := dhcpRequest{kind: dhcpRequestKind, id: 0x01020304, wanted: netip.MustParseAddr("10.0.2.15"), server: netip.MustParseAddr("10.0.2.2")}
	b := r.marshal(mac)
	if len(b) != 300 || !bytes.HasPrefix(b, []byte{1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0x80, 0}) || !bytes.Equal(b[28:34], mac[:]) {
		t.Errorf("message of %d bytes: % x", len(b), b[:44])
	}
	options := []byte{53, 1, 3, 50, 4, 10, 0, 2, 15, 54, 4, 10, 0, 2, 2, 55, 6, 1, 3, 6, 15, 26, 51, 255, 0}
	if got := b[dhcpOptionsAt:]; !bytes.HasPrefix(got, options) {
		t.Errorf("options % x", got[:40])
	}
	for _, tt := range []struct {
		kind   byte
		server string
		want   bool
	}{{dhcpAck, "10.0.2.2", true}, {dhcpNak, "10.0.2.2", true}, {dhcpAck, "10.0.2.3", false}, {dhcpOffer, "10.0.2.2", false}} {
		if got := r.accepts(dhcpReply{kind: tt.kind, server: netip.MustParseAddr(tt.server)}); got != tt.want {
			t.Errorf("%d of %s: accepted %v", tt.kind, tt.server, got)
		}
	}
}

// FuzzDHCPReply reads whatever comes from the network.
func FuzzDHCPReply(f *testing.F) {
	f.Add(reply(7, 53, 1, 5, 1, 4, 255, 255, 255, 0, 6, 4, 1, 1, 1, 1, 255)[dhcpOptionsAt:])
	f.Add([]byte{0, 0, 6, 3, 1, 2, 3, 15, 0, 51, 255})
	f.Fuzz(func(t *testing.T, options []byte) {
		r, err := parseReply(reply(7, options...), 7, mac)
		if err != nil {
			t.Fatal(err)
		}
		if !r.address.IsValid() || len(r.dns) > len(options)/4 {
			t.Errorf("%+v", r)
		}
		if strings.ContainsFunc(r.domain, func(c rune) bool { return c <= ' ' || c > '~' }) {
			t.Errorf("domain %q", r.domain)
		}
	})
}
