package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/guest/disk"
	"github.com/godwit-vmm/godwit/internal/testenv"
)

// saved is a guest with a disk that is saved and restored.
type saved struct {
	t *testing.T
	e *emulated
	// name is what the guest is called now; disk is its image, and dir where the
	// snapshots go.
	name, disk, dir string
	n               int
}

// selfcheck is the program of that name in the guest.
const selfcheck = "/tmp/selfcheck"

func newSaved(t *testing.T, name string, flags ...string) *saved {
	t.Helper()
	e := emulatedHost(t)
	image := filepath.Join(t.TempDir(), "empty-64M.img")
	if err := disk.Build(t.Context(), t.TempDir(), image, disk.Options{Size: 64 << 20}); err != nil {
		testenv.Lacks(t, "%v", err)
	}
	s := &saved{t: t, e: e, name: name, dir: hostFolder(t, e, name), disk: placeInLab(t, e, image)}
	args := append([]string{"boot", "--name", name, "--memory", "256M", "--disk", s.disk, "--net", "user", "--balloon", "0", "--wait"}, flags...)
	on(t, e, nil, args...).expect(t, 0, name+"\n")
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() { inLab(t, e, nil, "godwit kill "+s.name+"; rm -rf "+s.dir+" "+s.disk+"*") })
	on(t, e, nil, "cp", testProgram(t, e, "selfcheck"), name+":"+selfcheck).expect(t, 0, "")
	s.in("mkdir -p /mnt && mount -t ext4 /dev/vda /mnt")
	return s
}

// begin has the guest check itself from now on.
func (s *saved) begin() {
	s.t.Helper()
	s.in(selfcheck + " start /mnt")
}

// in runs a shell script in the guest, which has to succeed.
func (s *saved) in(text string) string {
	s.t.Helper()
	r := on(s.t, s.e, nil, "exec", s.name, "--", "sh", "-c", text)
	if r.status != 0 {
		s.t.Fatal(r)
	}
	return r.stdout
}

// sound fails unless the guest's checks go on and have found nothing.
func (s *saved) sound() {
	s.t.Helper()
	checkSound(s.t, s.in)
}

// checkSound asks a guest's own checks, and its kernel; in runs a script there.
func checkSound(t *testing.T, in func(script string) string) {
	t.Helper()
	if got := in(selfcheck + " status"); got != "sound\n" {
		t.Fatalf("status %q", got)
	}
	if log := in("dmesg"); strings.Contains(log, "stall") || strings.Contains(log, "lockup") || strings.Contains(log, "I/O error") {
		t.Fatalf("the guest's kernel complains:\n%s", log)
	}
}

func (s *saved) path(name string) string { return s.dir + "/" + name }

// snapshot saves the guest, which runs on.
func (s *saved) snapshot(name string, flags ...string) {
	s.t.Helper()
	r := on(s.t, s.e, nil, append([]string{"snapshot", s.name, s.path(name)}, flags...)...)
	if r.status != 0 {
		s.t.Fatal(r)
	}
	s.t.Log(strings.TrimSpace(r.stdout))
}

// replace kills the guest and restores it from a snapshot.
func (s *saved) replace(name string) {
	s.t.Helper()
	on(s.t, s.e, nil, "kill", s.name)
	s.restore(name)
}

// restore restores the guest with a copy of its disk that nobody else has.
func (s *saved) restore(name string) {
	s.t.Helper()
	s.n++
	restored := fmt.Sprintf("restored-%d", s.n)
	r := on(s.t, s.e, nil, "restore", s.path(name), "--name", restored, "--disk", fmt.Sprintf("0=%s.%d", s.disk, s.n), "--wait")
	if r.status != 0 || r.stdout != restored+"\n" {
		s.t.Fatal(r)
	}
	s.name = restored
}

// TestSnapshots saves a guest that is busy, kills it and restores it, again and
// again.
func TestSnapshots(t *testing.T) {
	t.Parallel()
	s := newSaved(t, "saved", "--cpus", "2")
	s.begin()
	rounds := 3
	if text := os.Getenv("GODWIT_TEST_SNAPSHOTS"); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	for i := range rounds {
		name := fmt.Sprintf("full-%d", i)
		s.snapshot(name, "--with-disks")
		s.sound()
		s.replace(name)
		s.sound()
		script(t, s.e, fmt.Sprintf("godwit snapshot verify %[1]s && rm -r %[1]s; rm -f %[2]s.%[3]d", s.path(name), s.disk, s.n-1))
	}
}

// TestSnapshotChain restores a diff on two others, and what they are merged to. Its guest
// has more processors than the host.
func TestSnapshotChain(t *testing.T) {
	t.Parallel()
	s := newSaved(t, "chain", "--cpus", "4")
	s.begin()
	s.snapshot("base", "--with-disks", "--track")
	last := "base"
	for _, name := range []string{"one", "two", "three"} {
		s.sound()
		s.snapshot(name, "--with-disks", "--diff", s.path(last))
		last = name
	}
	s.replace("three")
	s.sound()
	script(t, s.e, fmt.Sprintf("godwit snapshot merge %s %s && godwit snapshot verify %s", s.path("three"), s.path("merged"), s.path("merged")))
	s.replace("merged")
	s.sound()
}

// TestClones makes ten guests of one at once. Nothing that has to be unique is the
// same in two of them, and what one writes is not the other's.
func TestClones(t *testing.T) {
	t.Parallel()
	const count = 10
	s := newSaved(t, "cloned")
	s.snapshot("base", "--with-disks")
	on(t, s.e, nil, "kill", s.name)
	r := on(t, s.e, nil, "clone", s.path("base"), "--count", fmt.Sprint(count), "--name", "clone", "--wait")
	names := strings.Fields(r.stdout)
	if r.status != 0 || len(names) != count {
		t.Fatal(r)
	}
	t.Cleanup(func() { inLab(t, s.e, nil, "godwit kill "+strings.Join(names, " ")) })
	seen := make(map[string]string)
	for _, name := range names {
		s.name = name
		s.in("echo " + name + " > /mnt/name && sync")
		for line := range strings.Lines(s.in(selfcheck + " identity")) {
			if other, ok := seen[line]; ok {
				t.Errorf("%s and %s have the same %s", name, other, line)
			}
			seen[line] = name
		}
	}
	if len(seen) != 3*count {
		t.Errorf("%d lines of identities, want %d", len(seen), 3*count)
	}
	for _, name := range names {
		s.name = name
		if got := s.in("cat /mnt/name"); got != name+"\n" {
			t.Errorf("the disk of %s is that of %s", name, got)
		}
	}
	s.begin()
	s.sound()
}
