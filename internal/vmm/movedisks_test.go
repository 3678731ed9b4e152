package vmm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/live"
)

// The disk of a guest that writes all of it, and then reads it back.
const (
	writtenSize  = 2 << 20
	writtenBlock = 16 << 10
	writtenSeed  = 7
)

// writer is a guest that writes its disk from one end to the other, and compares it with
// what it wrote.
func writer(t *testing.T) string {
	return kernel(t)(micro.Block{
		Access: micro.Write, Seed: writtenSeed, Size: writtenBlock, Depth: 16, Requests: writtenSize / writtenBlock, Verify: true,
	}.ELF())
}

// diskWriter is a guest whose disk is dense at first, with something else in it than what
// the guest writes, and slow enough for it to move meanwhile.
func diskWriter(t *testing.T, overlay string) (f *fixture, disk string, before []byte) {
	t.Helper()
	before = make([]byte, writtenSize)
	micro.Pattern(99, 0, before)
	clear(before[writtenSize/2 : writtenSize/2+writtenSize/4])
	disk = filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(disk, before, 0o600); err != nil {
		t.Fatal(err)
	}
	f = newVM(t, writer(t), func(o *Options) { o.Name = "writer" })
	f.must(f.Configure(func(c *Config) error {
		d := blk.Config{Path: disk, Overlay: overlay, Limit: limit.Config{Operations: limit.Rate{PerSecond: 128, Burst: 16}}}
		c.Drives = []Drive{{ID: "data", Config: d}}
		return nil
	}))
	f.must(f.Start())
	f.runs()
	return f, disk, before
}

// done waits until the guest has compared its disk with what it wrote.
func (f *fixture) done() {
	f.t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); f.result().Status == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("the guest does not come to its end: %+v", f.result())
		}
	}
	if r := f.result(); r.Status != micro.StatusDone || r.Mismatches != 0 || r.Errors != 0 {
		f.t.Errorf("the guest found %+v", r)
	}
}

func (f *fixture) withDisks(ctx context.Context, h *host, j *handover.Journal, change func(*MigrateRequest)) (live.Report, error) {
	f.t.Helper()
	r := MigrateRequest{Addr: h.addr, Journal: j, Policy: policy, WithDisks: true}
	if change != nil {
		change(&r)
	}
	return f.Migrate(ctx, r)
}

// names are the files of a folder.
func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// TestMoveDisk: a guest writes its disk while that moves with it.
func TestMoveDisk(t *testing.T) {
	for _, overlaid := range []bool{false, true} {
		overlay, name := "", "an image"
		if overlaid {
			overlay, name = filepath.Join(t.TempDir(), "overlay"), "an overlay"
		}
		t.Run(name, func(t *testing.T) {
			here, there := newHost(t), newHost(t)
			folder := t.TempDir()
			there.request = ReceiveRequest{DiskFolder: folder}
			f, disk, before := diskWriter(t, overlay)
			path := filepath.Join(folder, "writer-0.img")
			var left, came []byte
			there.before = func() { left, came = readFile(t, disk), readFile(t, path) }
			count := f.result().Count
			report, err := f.withDisks(t.Context(), there, here.journal, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("after %d requests: %+v", count, report)
			<-f.Done()
			f = <-there.came
			if !overlaid && !bytes.Equal(came, left) {
				t.Error("the disk came as another one than it was here")
			}
			if got := f.Config().Drives[0]; got.Path != path || got.Overlay != "" {
				t.Errorf("its disk is %+v", got.Config)
			}
			if _, err := blk.New(blk.Config{Path: path}); !errors.Is(err, blk.ErrInUse) {
				t.Errorf("the disk is not locked: %v", err)
			}
			f.done()
			want := make([]byte, writtenSize)
			micro.Pattern(writtenSeed, 0, want)
			if !bytes.Equal(readFile(t, path), want) {
				t.Error("the disk there is not what the guest wrote")
			}
			if got := names(t, folder); len(got) != 1 {
				t.Errorf("in the folder are %v", got)
			}
			if overlaid && !bytes.Equal(left, before) {
				t.Error("the base has changed")
			}
			if !bytes.Equal(readFile(t, disk), left) {
				t.Error("the image that was left behind has changed after the guest had moved")
			}
			if report.Disks.Data == 0 || report.Disks.Zero < writtenSize/8 && !overlaid {
				t.Errorf("the report has %+v", report.Disks)
			}
		})
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestMoveDiskFails: whatever ends the migration, the guest goes on with its disk, and
// nothing is left at the destination.
func TestMoveDiskFails(t *testing.T) {
	changed := errors.New("somebody has changed their mind")
	for _, test := range []struct {
		name string
		// prepare changes the folder before.
		prepare func(t *testing.T, folder string)
		// during is called with the progress; it may end the migration.
		during func(p live.Progress, cancel context.CancelCauseFunc, folder string)
		want   string
		// twice has the next attempt fail, too.
		twice bool
		left  []string
	}{
		{
			name: "there is such a file",
			prepare: func(t *testing.T, folder string) {
				if err := os.WriteFile(filepath.Join(folder, "writer-0.img"), []byte("other"), 0o600); err != nil {
					t.Fatal(err)
				}
			},
			want: "remove that one, or give another path", twice: true, left: []string{"writer-0.img"},
		},
		{
			name: "canceled",
			during: func(p live.Progress, cancel context.CancelCauseFunc, _ string) {
				if p.DiskSent > 0 {
					cancel(changed)
				}
			},
			want: changed.Error(),
		},
		{
			name: "the name is taken meanwhile",
			during: func(p live.Progress, _ context.CancelCauseFunc, folder string) {
				if p.Phase == live.PhaseStop {
					_ = os.WriteFile(filepath.Join(folder, "writer-0.img"), []byte("other"), 0o600)
				}
			},
			want: "file exists", twice: true, left: []string{"writer-0.img"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			here, there := newHost(t), newHost(t)
			folder := t.TempDir()
			there.request = ReceiveRequest{DiskFolder: folder}
			if test.prepare != nil {
				test.prepare(t, folder)
			}
			f, disk, _ := diskWriter(t, "")
			ctx, cancel := context.WithCancelCause(t.Context())
			_, err := f.withDisks(ctx, there, here.journal, func(r *MigrateRequest) {
				if test.during != nil {
					r.Progress = func(p live.Progress) { test.during(p, cancel, folder) }
				}
			})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want %q", err, test.want)
			}
			<-there.ended
			if got := names(t, folder); strings.Join(got, " ") != strings.Join(test.left, " ") {
				t.Errorf("left behind: %v, want %v", got, test.left)
			}
			if err := here.journal.MayStart(f.Name()); err != nil {
				t.Error(err)
			}
			if test.twice {
				there.request.DiskFolder = t.TempDir()
			}
			if _, err := f.withDisks(t.Context(), there, here.journal, nil); err != nil {
				t.Fatal(err)
			}
			<-f.Done()
			(<-there.came).done()
			if len(readFile(t, disk)) != writtenSize {
				t.Error("the image at the source is not whole")
			}
		})
	}
}
