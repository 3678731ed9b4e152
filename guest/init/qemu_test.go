package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/godwit-vmm/godwit/guest"
	"github.com/godwit-vmm/godwit/guest/agent"
	"github.com/godwit-vmm/godwit/guest/disk"
	"github.com/godwit-vmm/godwit/internal/testenv"
)

// bootTimeout is for a guest under emulation on a machine that does much else.
const bootTimeout = 3 * time.Minute

// emulated is a guest with this init, under QEMU's emulation: a virtual machine
// that has nothing of godwit's but the guest.
type emulated struct {
	t   *testing.T
	cmd *exec.Cmd
	dir string // has the log of the console and the socket of the second serial port
}

// initrd is the cached initramfs with this init in the place of its own.
func initrd(t *testing.T, k guest.Kernel) string {
	t.Helper()
	image, err := k.CachedImage(guest.GuestImage)
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "init")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	archive, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	// The kernel unpacks one archive after the other.
	all := bytes.NewBuffer(archive)
	w := cpio.Newc.Writer(all)
	if err := errors.Join(w.WriteRecord(cpio.StaticFile("init", string(content), 0o755)), cpio.WriteTrailer(w)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "initrd")
	if err := os.WriteFile(file, all.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// boot starts a guest with a disk.
func boot(t *testing.T, k guest.Kernel, initrd, image, words string, args ...string) *emulated {
	t.Helper()
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		testenv.Lacks(t, "qemu-system-x86_64 is not installed")
	}
	dir, err := os.MkdirTemp("", "godwit-init-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	e := &emulated{t: t, dir: dir}
	e.cmd = exec.Command(qemu, append([]string{
		"-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", k.Path, "-initrd", initrd, "-append", "console=ttyS0 panic=-1 quiet no_timer_check mitigations=off " + words,
		// Relative, because the path of a socket must be short.
		"-serial", "file:console", "-serial", "unix:agent,server=on,wait=off",
		"-drive", "file=" + image + ",format=raw,if=none,id=root", "-device", "virtio-blk-pci,drive=root",
	}, args...)...)
	e.cmd.Dir = dir
	var stderr bytes.Buffer
	e.cmd.Stderr = &stderr
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if e.cmd.ProcessState == nil {
			e.cmd.Process.Kill()
			e.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("QEMU: %s\nconsole:\n%s", stderr.String(), e.said())
		}
	})
	return e
}

func (e *emulated) said() string {
	text, _ := os.ReadFile(filepath.Join(e.dir, "console"))
	return string(text)
}

// dial connects to the agent.
func (e *emulated) dial() *agent.Client {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), bootTimeout)
	defer cancel()
	var conn net.Conn
	for {
		var err error
		if conn, err = net.Dial("unix", filepath.Join(e.dir, "agent")); err == nil {
			break
		}
		// QEMU has no way to tell that its socket is there.
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			e.t.Fatal(err)
		}
	}
	client, err := agent.Dial(ctx, conn)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { client.Close() })
	return client
}

// run runs a shell script in the guest and returns its output.
func (e *emulated) run(c *agent.Client, script string) string {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), bootTimeout)
	defer cancel()
	var out bytes.Buffer
	exit, err := c.Run(ctx, agent.Command{Args: []string{"sh", "-c", script}, Stdout: &out, Stderr: &out})
	if err != nil || exit.Status() != 0 {
		e.t.Fatalf("%s: status %d, %v\n%s", script, exit.Status(), err, out.String())
	}
	return out.String()
}

// await waits until the guest has ended itself.
func (e *emulated) await() {
	e.t.Helper()
	timer := time.AfterFunc(bootTimeout, func() {
		e.t.Error("the guest does not end")
		e.cmd.Process.Kill()
	})
	defer timer.Stop()
	if err := e.cmd.Wait(); err != nil {
		e.t.Errorf("QEMU: %v", err)
	}
}

const rootUUID = "0badcafe-0000-4000-8000-000000000001"

// emptyRoot makes an image of a root file system with nothing but a few files and
// links.
func emptyRoot(t *testing.T, files map[string]string, links ...[2]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range links {
		file := filepath.Join(dir, l[0])
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.Symlink(l[1], file)); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(t.TempDir(), "root.img")
	if err := disk.Build(t.Context(), dir, image, disk.Options{Label: "root-disk", UUID: rootUUID, Size: 64 << 20}); err != nil {
		testenv.Lacks(t, "%v", err)
	}
	return image
}

// checkDisk checks that an image is as after a clean unmount.
func checkDisk(t *testing.T, image string) {
	t.Helper()
	if out, err := exec.Command("/sbin/e2fsck", "-f", "-n", image).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	out, err := exec.Command("/sbin/dumpe2fs", "-h", image).CombinedOutput()
	if err != nil || strings.Contains(string(out), "needs_recovery") || !strings.Contains(string(out), "clean") {
		t.Errorf("the file system was not settled: %v\n%s", err, out)
	}
}

func requireEmulation(t *testing.T) (guest.Kernel, string) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a stock kernel: not in -short")
	}
	k, err := guest.CachedKernel()
	if errors.Is(err, guest.ErrNotCached) {
		testenv.Lacks(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k, initrd(t, k)
}

// TestRootDisk runs commands in a root file system that has none of its own, and
// finds what they have written in the next boot and in the image.
func TestRootDisk(t *testing.T) {
	k, initrd := requireEmulation(t)
	image := emptyRoot(t, map[string]string{"etc/mark": "this is the root\n", "etc/resolv.conf": "the image's own\n"})
	e := boot(t, k, initrd, image, "root=LABEL=root-disk rw rootflags=noatime godwit.agent=ttyS1",
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=")
	c := e.dial()
	for script, want := range map[string]string{
		"cat /etc/mark":                 "this is the root\n",
		"grep ' / ' /proc/mounts":       "/dev/vda / ext4 rw,noatime 0 0\n",
		"pwd; echo $HOME":               "/root\n/root\n",
		"cat /proc/sys/kernel/modprobe": ownFiles + "/bin/modprobe\n",
		"nproc":                         "1\n",
		"modprobe overlay && lsmod | grep -c '^overlay'": "1\n",
		// The user network of QEMU has a DHCP server.
		"cat /etc/resolv.conf":                              "nameserver 10.0.2.3\n",
		"grep -c '^eth0.00000000.0202000A' /proc/net/route": "1\n",
	} {
		if got := e.run(c, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	// A process with an open file is still there when the machine ends, one
	// that does not mind signals; and so are unwritten data.
	e.run(c, "(trap '' TERM HUP; while true; do echo more; sleep 1; done) > /log 2>&1 & dd if=/dev/urandom of=/data bs=1M count=8; sha1=$(shasum /data); echo $sha1 > /sum")
	if err := c.Poweroff(); err != nil {
		t.Fatal(err)
	}
	e.await()
	checkDisk(t, image)

	e = boot(t, k, initrd, image, "root=/dev/vda rw godwit.agent=ttyS1 godwit.ip=off")
	c = e.dial()
	if got := e.run(c, "test \"$(shasum /data)\" = \"$(cat /sum)\" && cat /etc/resolv.conf"); got != "the image's own\n" {
		t.Errorf("after a boot: %q", got)
	}
	// From within, as a user does it. The command ends with the guest, or with
	// the signal that all processes get.
	c.Run(t.Context(), agent.Command{Args: []string{"sh", "-c", "echo x >> /log; reboot"}})
	e.await() // -no-reboot
	checkDisk(t, image)
}

// TestRootInit hands over to the init of the disk.
func TestRootInit(t *testing.T) {
	k, initrd := requireEmulation(t)
	program := filepath.Join(t.TempDir(), "first")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", program, "testdata/first/main.go")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ words, args string }{
		{"", `["/sbin/init" "word"]`},
		{"godwit.agent=ttyS1 init=/lib/first", `["/lib/first" "word"]`},
	} {
		t.Run(tt.words, func(t *testing.T) {
			// The link is one that leads elsewhere from the initramfs.
			image := emptyRoot(t, map[string]string{"lib/first": string(content)}, [2]string{"sbin/init", "/lib/first"})
			e := boot(t, k, initrd, image, "root=UUID="+rootUUID+" rw "+tt.words+" word")
			e.await()
			said := e.said()
			for _, want := range []string{
				"first: pid 1, " + tt.args + ", HOME=/\r", "first: mount /dev/vda / ext4 rw", "first: mount proc /proc",
				"first: mount devtmpfs /dev", "first: 0 entries in /run, <nil>", "first: /sbin/modprobe <nil>",
			} {
				if !strings.Contains(said, want) {
					t.Errorf("the console has no %q:\n%s", want, said)
				}
			}
			if strings.Contains(said, "init:") {
				t.Errorf("complaints:\n%s", said)
			}
		})
	}
}

// TestNoRoot checks that commands do not run elsewhere when there is no root.
func TestNoRoot(t *testing.T) {
	k, initrd := requireEmulation(t)
	image := emptyRoot(t, nil)
	for words, want := range map[string]string{
		"root=nonsense":                         "want /dev/NAME",
		"root=/dev/vda rootfstype=squashfs":     "no file system",
		"root=/dev/vda rw init=/sbin/not-there": "not-there",
	} {
		t.Run(words, func(t *testing.T) {
			e := boot(t, k, initrd, image, words+" godwit.agent=ttyS1")
			e.await()
			if said := e.said(); !strings.Contains(said, want) || !strings.Contains(said, "Kernel panic") {
				t.Errorf("the console has no %q and panic:\n%s", want, said)
			}
		})
	}
}
