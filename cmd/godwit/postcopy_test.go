package main

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/godwit-vmm/godwit/internal/api"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/memory/uffd"
)

// needPostCopy skips a test where the host cannot have memory come later.
func needPostCopy(t *testing.T) {
	t.Helper()
	fd, err := uffd.Open(uffd.Options{})
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	if err := fd.Close(); err != nil {
		t.Fatal(err)
	}
}

// lastStatus is what the last of some lines of JSON says.
func lastStatus(t *testing.T, lines string) (s api.MigrationStatus) {
	t.Helper()
	all := strings.Split(strings.TrimSpace(lines), "\n")
	if err := json.Unmarshal([]byte(all[len(all)-1]), &s); err != nil {
		t.Fatalf("%v: %s", err, lines)
	}
	return s
}

// TestMigratePostCopy moves a guest that writes faster than its memory is sent, and back
// after a single round.
func TestMigratePostCopy(t *testing.T) {
	needPostCopy(t)
	here, there := newSite(t), newSite(t)
	here.boot("web")
	was := here.sound("web")
	out := here.must("migrate", "web", there.receive().addr, "--bandwidth", "16M", "--downtime", "5ms", "--postcopy", "auto", "--json")
	p := lastStatus(t, out).Report
	if p == nil || p.PostCopy == nil || p.PostCopy.Asked+p.PostCopy.Pushed == 0 || !strings.Contains(out, `"phase":"post-copy"`) {
		t.Fatalf("no memory followed: %s", out)
	}
	t.Logf("downtime %v, %s", p.Downtime.Total, postCopyText(p.PostCopy))
	if now := there.sound("web"); now < was {
		t.Errorf("its counter went from %d back to %d", was, now)
	}
	here.await("the process here ends", func() bool { return here.state("web") == nil })
	out = there.must("migrate", "web", here.receive().addr, "--postcopy", "now", "--bandwidth", "16M", "--downtime", "1ms")
	if !strings.Contains(out, " followed in ") {
		t.Errorf("it says %q", out)
	}
	here.sound("web")
	here.refuses("want never, auto or now", "migrate", "web", "127.0.0.1:1", "--postcopy", "soon")
}

// kindTimes is the kind of the first frame that a receiver sends of a guest that runs.
const kindTimes = 5

// stranded is a guest that runs at its destination, and whose memory is at its source,
// from where nothing comes before the relay is mended. The migration is under way.
func stranded(t *testing.T, here, there *site) (r *relay, receiver, migration *running) {
	t.Helper()
	needPostCopy(t)
	here.boot("web")
	receiver = there.receive()
	r = newRelay(t, receiver.addr)
	r.holdPushed = true
	r.breakAt(func(toReceiver bool, kind byte) bool { return !toReceiver && kind == kindTimes })
	migration = here.start("migrate", "web", r.addr(), "--postcopy", "now", "--bandwidth", "16M", "--downtime", "1ms", "--json")
	there.await("the guest waits", func() bool { return there.migration("web").State == "waiting for the source's memory" })
	return r, receiver, migration
}

// TestPostCopyStranded: the guest goes on when its source can be reached again.
func TestPostCopyStranded(t *testing.T) {
	here, there := newSite(t), newSite(t)
	r, receiver, migration := stranded(t, here, there)
	got := there.migration("web")
	if got.Owner != "here" || got.Missing == nil || got.Missing.Bytes == 0 || len(got.Todo) == 0 {
		t.Errorf("its state is %+v", got)
	}
	if got := there.state("web"); got == nil || got.Moving != "waiting for memory" {
		t.Errorf("ps has %+v", got)
	}
	if want := "the guest stands still where it needs one of"; !strings.Contains(receiver.err.String(), want) {
		t.Errorf("the receiver says %q, want %q", receiver.err.String(), want)
	}
	there.refuses("has not got all of its memory yet", "migration", "resolve", "web")
	there.refuses("is not in doubt", "migration", "resolve", "web", "--run-here", "--fenced", "x")
	there.refuses("are still at the host that it came from", "migrate", "web", "127.0.0.1:1")
	r.mend(receiver.addr)
	if got := migration.end(); got.status != 0 || lastStatus(t, got.stdout).Report.PostCopy == nil {
		t.Errorf("the migration ended with %+v", got)
	}
	there.sound("web")
	if got := there.migration("web"); got.State != "came" || got.Missing != nil {
		t.Errorf("afterwards its state is %+v", got)
	}
}

// TestPostCopySourceKilled: a guest whose source is killed waits, and can be ended.
func TestPostCopySourceKilled(t *testing.T) {
	for _, tt := range []struct {
		end  []string
		says string
	}{
		{[]string{"kill", "web"}, ""},
		{[]string{"migration", "resolve", "web", "--give-up"}, "was given up by an operator"},
	} {
		here, there := newSite(t), newSite(t)
		_, receiver, migration := stranded(t, here, there)
		if err := syscall.Kill(here.state("web").PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if got := migration.end(); got.status != exitFailed || !strings.Contains(got.stderr, "godwit migration status") {
			t.Errorf("the migration ended with %+v", got)
		}
		if got := there.migration("web"); got.State != "waiting for the source's memory" {
			t.Errorf("its state is %+v", got)
		}
		there.must(tt.end...)
		there.await("the guest ends", func() bool { return there.state("web") == nil })
		if got := receiver.end(); got.status == 0 || !strings.Contains(got.stderr, tt.says) {
			t.Errorf("after %v its process ended with %+v", tt.end, got)
		}
	}
}

// TestMigrateDisks moves a guest with its disk: an attempt that is called off leaves what
// the next one goes on with, and the image at the source is as it was.
func TestMigrateDisks(t *testing.T) {
	here, there := newSite(t), newSite(t)
	const size = 8 << 20
	image := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(image[:size/2])
	random.Read(image[size-4096:])
	disk, to := filepath.Join(t.TempDir(), "disk.img"), filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(disk, image, 0o600); err != nil {
		t.Fatal(err)
	}
	here.boot("web", "--disk", disk)
	same := func(path string) {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, image) {
			t.Errorf("%s is not the disk, %v", path, err)
		}
	}
	here.refuses("say where it is to be with --disk 0=PATH", "migrate", "web", there.receive().addr, "--with-disks")
	here.refuses("remove that one, or give another path", "migrate", "web", there.receive("--disk", "0="+disk).addr, "--with-disks")

	r := there.receive("--disk", "0="+to, "--keep-partial")
	m := here.start("migrate", "web", r.addr, "--with-disks", "--bandwidth", "1M", "--json")
	m.until(func(s api.MigrationStatus) bool { return s.Progress != nil && s.Progress.DiskSent >= 5*size/16 })
	here.must("migration", "cancel", "web")
	if got := m.end(); got.status != exitFailed {
		t.Errorf("the migration ended with %+v", got)
	}
	there.await("the receiver keeps what has come", func() bool { return strings.Contains(r.err.String(), "the next attempt goes on with it") })
	if _, err := os.Stat(to); err == nil {
		t.Error("a part of a disk looks whole")
	}
	same(disk)
	here.sound("web")

	out := here.must("migrate", "web", r.addr, "--with-disks", "--downtime", "2s", "--json")
	report := lastStatus(t, out).Report
	if report == nil || report.Disks.Same < 1<<20 || report.Disks.Data == 0 || report.Disks.Data >= size/2 {
		t.Errorf("the next attempt did not go on with what there was: %s", out)
	}
	if want := "only what differs from it is sent"; !strings.Contains(r.err.String(), want) {
		t.Errorf("the receiver says %q, want %q", r.err.String(), want)
	}
	there.sound("web")
	same(to)
	same(disk)
	if left, _ := filepath.Glob(to + ".*"); left != nil {
		t.Errorf("left behind: %v", left)
	}

	// Back into a folder, and as soon as can be.
	folder := t.TempDir()
	back := []string{"migrate", "web", here.receive("--disk-folder", folder).addr, "--with-disks", "--downtime", "2s"}
	want := "disks: 4.0 MiB"
	if fd, err := uffd.Open(uffd.Options{}); err == nil {
		fd.Close()
		back, want = append(back, "--postcopy", "now", "--bandwidth", "16M", "--downtime", "1ms"), " followed in "
	}
	if out := there.must(back...); !strings.Contains(out, want) || !strings.Contains(out, "disks: 4.0 MiB") {
		t.Errorf("it says %q, want %q", out, want)
	}
	here.sound("web")
	same(filepath.Join(folder, "web-0.img"))
}

// until reads lines of a migration until one is as it is to be.
func (r *running) until(is func(api.MigrationStatus) bool) {
	r.t.Helper()
	for {
		line, err := r.out.ReadString('\n')
		var s api.MigrationStatus
		if err == nil {
			err = json.Unmarshal([]byte(line), &s)
		}
		if err != nil {
			r.t.Fatalf("%v: %s", err, r.err.String())
		}
		if is(s) {
			return
		}
	}
}
