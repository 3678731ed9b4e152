package tests

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// rootImage is a small root file system with the programs of a stock system, and
// room for what these tests write.
func rootImage(t *testing.T) string {
	t.Helper()
	return debianImage(t, 192<<20, "bash", "coreutils", "dash", "e2fsprogs", "mount")
}

// rooted is a runner, and an image there that belongs to a test.
type rooted struct {
	t *testing.T
	runner
	image string
	tools string // another one, to look at the first with; made by check
}

// withRoot waits for a place where godwit boots Linux and puts a root file system
// there. Both are the test's until its end.
func withRoot(t *testing.T, makeImage func(*testing.T) string) *rooted {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a stock kernel: not in -short")
	}
	image := makeImage(t)
	r, release := host(t)
	t.Cleanup(release)
	return &rooted{t: t, runner: r, image: place(t, r, image)}
}

// boot runs a shell script in a guest, with flags, and gives its output.
func (r *rooted) boot(script string, flags ...string) string {
	r.t.Helper()
	var stdout, stderr bytes.Buffer
	args := append(append([]string{"boot", "--memory", "512M"}, flags...), "--", "sh", "-c", script)
	status, err := run(r.t.Context(), r.runner, nil, &stdout, &stderr, args...)
	if err != nil || status != 0 {
		r.t.Fatalf("%s: status %d, %v\nstdout:\n%s\nstderr:\n%s", script, status, err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// TestRoot writes 64 MiB, syncs, reboots and finds them again.
func TestRoot(t *testing.T) {
	t.Parallel()
	r := withRoot(t, rootImage)
	prompt := "# "
	in := newTypist([]step{
		{prompt, "dd if=/dev/urandom of=/data bs=1M count=64 && sync && sha256sum /data > /sum; echo wrote $((2*32))\n"},
		{"wrote 64", ""}, {prompt, "grep ' / ' /proc/mounts; reboot\n"}, {"/dev/vda / ext4 rw", ""},
		{prompt, "sha256sum -c /sum; e2fsck -n /dev/vda > /dev/null; echo fsck $((1+1))\n"},
		{"/data: OK", ""}, {"fsck 2", ""}, {prompt, "poweroff\n"},
	})
	var stderr bytes.Buffer
	status, err := run(t.Context(), r.runner, in, in, &stderr, "boot", "--memory", "512M", "--root", r.image)
	in.Close()
	if err != nil || status != 0 || in.left() != nil {
		t.Fatalf("status %d, %v, left %v\nconsole:\n%s\nstderr:\n%s", status, err, in.left(), in.text(), stderr.String())
	}
	// The guest has settled the disk before it ended.
	r.check("-f -n")
	r.boot("sha256sum -c /sum && touch /new", "--root", r.image)
	r.check("-f -n")
}

// check has a guest with another root file system run e2fsck on the image.
func (r *rooted) check(options string) string {
	r.t.Helper()
	if r.tools == "" {
		r.tools = place(r.t, r.runner, rootImage(r.t))
	}
	return r.boot("e2fsck "+options+" /dev/vdb", "--root", r.tools+",ro", "--disk", r.image)
}

// TestKilledWhileWriting kills the hypervisor while the guest writes. The file
// system is sound after its journal is replayed, and what had been synced is
// there.
func TestKilledWhileWriting(t *testing.T) {
	t.Parallel()
	r := withRoot(t, rootImage)
	const script = `for i in $(seq 1000); do
		dd if=/dev/urandom of=/file.$i bs=64k count=$((i % 20 + 1)) 2>/dev/null
		sha256sum /file.$i > /sum.$i; sync /file.$i /sum.$i /; echo synced $i; rm -f /file.$((i - 30)) /sum.$((i - 30))
	done`
	said := newAwaiter("synced 25\n")
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	var stderr bytes.Buffer
	p, err := r.start(ctx, nil, said, &stderr, "boot", "--memory", "512M", "--root", r.image, "--", "bash", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-said.done:
		err = p.Signal(syscall.SIGKILL)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if _, waitErr := p.Wait(); err != nil {
		t.Fatalf("%v, %v\nstdout:\n%s\nstderr:\n%s", err, waitErr, said.text(), stderr.String())
	}
	synced := regexp.MustCompile(`synced (\d+)\n`).FindAllStringSubmatch(said.text(), -1)
	last, _ := strconv.Atoi(synced[len(synced)-1][1])

	// -p replays the journal and repairs nothing that takes a decision; 1
	// says that it did.
	r.check("-f -p /dev/vdb; test $? -le 1 && e2fsck -f -n")
	out := r.boot(fmt.Sprintf("cd / && for i in $(seq %d %d); do sha256sum -c /sum.$i || exit 1; done", last-15, last), "--root", r.image)
	if n := strings.Count(out, ": OK\n"); n != 16 {
		t.Errorf("%d of 16 files are there:\n%s", n, out)
	}
}

// TestFio has fio write at random and verify what it reads back.
func TestFio(t *testing.T) {
	t.Parallel()
	r := withRoot(t, func(t *testing.T) string {
		return debianImage(t, 320<<20, "bash", "coreutils", "dash", "fio")
	})
	out := r.boot(`fio --name=verify --filename=/data --size=8M --rw=randwrite --bsrange=512-64k --direct=1 --ioengine=libaio --iodepth=16 \
		--verify=crc32c --do_verify=1 --verify_fatal=1 --output-format=terse && fio --name=sync --filename=/sync --size=2M --rw=randrw --fsync=16 --verify=sha1 --ioengine=psync --output-format=terse`,
		"--root", r.image, "--cpus", "2")
	if lines := strings.Count(strings.TrimSpace(out), "\n") + 1; lines != 2 {
		t.Errorf("%d reports of fio, want 2:\n%s", lines, out)
	}
}

// TestTwoWriters keeps two guests from writing to one disk.
func TestTwoWriters(t *testing.T) {
	t.Parallel()
	r := withRoot(t, rootImage)
	said := newAwaiter("up\n")
	input, end := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	var stderr bytes.Buffer
	p, err := r.start(ctx, input, said, &stderr, "boot", "--memory", "256M", "--root", r.image, "--", "sh", "-c", "echo up; cat")
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-said.done:
	case <-ctx.Done():
		t.Fatalf("%v: %s", ctx.Err(), stderr.String())
	}
	var second bytes.Buffer
	status, err := run(t.Context(), r.runner, nil, io.Discard, &second, "boot", "--memory", "256M", "--root", r.image, "--", "true")
	if err != nil || status != 125 || !strings.Contains(second.String(), r.image) {
		t.Errorf("the second guest: status %d, %v: %s", status, err, second.String())
	}
	end.Close()
	if status, err := p.Wait(); err != nil || status != 0 {
		t.Errorf("the first guest: status %d, %v: %s", status, err, stderr.String())
	}
}

// awaiter keeps what is written to it, and tells when a text has been.
type awaiter struct {
	want string
	done chan struct{} // closed when want has been written

	mu   sync.Mutex
	said bytes.Buffer
}

func newAwaiter(want string) *awaiter { return &awaiter{want: want, done: make(chan struct{})} }

// Write never fails.
func (a *awaiter) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := strings.Contains(a.said.String(), a.want)
	a.said.Write(p)
	if !before && strings.Contains(a.said.String(), a.want) {
		close(a.done)
	}
	return len(p), nil
}

func (a *awaiter) text() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.said.String()
}
