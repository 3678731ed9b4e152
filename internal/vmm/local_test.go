package vmm

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/migrate/live"
)

// newLocalHost is a host for guests of other processes of this one.
func newLocalHost(t *testing.T) *host {
	t.Helper()
	path := filepath.Join(t.TempDir(), "receive")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	h := newHostAt(t, l, "unix:"+path)
	h.request.Trusted = false
	return h
}

// openFiles is how many descriptors this process has, but for those that a fixture keeps.
func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range all {
		if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && to != "/dev/kvm" {
			n++
		}
	}
	return n
}

// guestMappings is how many mappings of guest memory this process has.
func guestMappings(t *testing.T) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(maps), "/memfd:")
}

// TestMigrateLocal: memory goes to another process as it is, to and fro, and nothing is
// left behind.
func TestMigrateLocal(t *testing.T) {
	const moves, size = 20, 1 << 30
	here, there := newLocalHost(t), newLocalHost(t)
	f := newVM(t, kernel(t)(micro.Check(16<<20, size, 256<<10, micro.Forever, nil)), nil)
	f.must(f.Configure(func(c *Config) error {
		c.CPUs, c.Memory = 2, size
		c.Balloon = &balloon.Config{DeflateOnOOM: true}
		return nil
	}))
	f.must(f.Start())
	f.runs()
	var files, mappings int
	for move := range moves {
		rounds := f.rounds()
		report, err := f.to(there, here.journal)
		f.must(err)
		t.Logf("%d: %v, downtime %+v", move, report.Total, report.Downtime)
		if report.Shared != size || report.Bytes != 0 || report.Wire != 0 || report.Rounds != 0 {
			t.Fatalf("%+v: want all of the memory shared, and none copied", report)
		}
		<-f.Done()
		if _, err := f.Wait(); err != nil {
			t.Fatal(err)
		}
		f = <-there.came
		if f.rounds() < rounds {
			t.Errorf("the guest's counter went from %d back to %d", rounds, f.rounds())
		}
		f.sound()
		f.must(<-there.ended)
		if move == 1 {
			files, mappings = openFiles(t), guestMappings(t)
		}
		here, there = there, here
	}
	if n := openFiles(t); n != files {
		t.Errorf("%d open files, and %d after the second move", n, files)
	}
	if n := guestMappings(t); n != mappings {
		t.Errorf("%d mappings of guest memory, and %d after the second move", n, mappings)
	}
}

// TestMigrateLocalTakenBack: a destination that fails late has left no trace in memory.
func TestMigrateLocalTakenBack(t *testing.T) {
	mishap := errors.New("a mishap")
	for _, at := range []live.Point{
		{Op: live.OpLocks, What: "take"},
		{Op: live.OpLocks, What: "take", After: true},
		{Op: live.OpJournal, What: "OWNER"},
	} {
		t.Run(at.String(), func(t *testing.T) {
			here, there := newLocalHost(t), newLocalHost(t)
			there.trace = func(p live.Point) error {
				if p == at {
					return mishap
				}
				return nil
			}
			f := newVM(t, checker(t), nil)
			f.must(f.Start())
			f.runs()
			if _, err := f.to(there, here.journal); !errors.Is(err, live.ErrTakenBack) {
				t.Fatalf("got %v", err)
			}
			f.sound()
			<-there.ended
			there.trace = nil
			f.moved(there, here.journal).sound()
		})
	}
}

// TestMigrateLocalRestored: memory that is a private mapping of a snapshot is copied, and
// after that it can be passed.
func TestMigrateLocalRestored(t *testing.T) {
	here, there := newLocalHost(t), newLocalHost(t)
	path := checkerSnapshot(t, func(*Config) error { return nil })
	f := restored(t, LoadRequest{Path: path, Resume: true})
	for move, shared := range []bool{false, true} {
		report, err := f.to(there, here.journal)
		f.must(err)
		if (report.Shared > 0) != shared || (report.Bytes > 0) == shared {
			t.Errorf("move %d: %+v, want it shared: %v", move, report, shared)
		}
		f = <-there.came
		f.sound()
		here, there = there, here
	}
}

// TestMigrateLocalTunnel: where the files do not arrive the peer is not trusted, and
// memory is copied.
func TestMigrateLocalTunnel(t *testing.T) {
	here, there := newLocalHost(t), newLocalHost(t)
	f, disk := runWithDisk(t)
	direct := there.addr
	there.addr = "unix:" + tunnel(t, strings.TrimPrefix(direct, "unix:"))
	_, err := f.to(there, here.journal)
	var refused *live.RefusedError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "--disk data=PATH") {
		t.Fatalf("got %v", err)
	}
	there.request.Disks = map[string]string{"data": disk}
	report, err := f.to(there, here.journal)
	f.must(err)
	if report.Shared != 0 || report.Bytes == 0 {
		t.Errorf("%+v: want the memory copied", report)
	}
	(<-there.came).sound()
}

// TestMigrateLocalDisk: who passes files may say which disk the guest gets.
func TestMigrateLocalDisk(t *testing.T) {
	here, there := newLocalHost(t), newLocalHost(t)
	f, disk := runWithDisk(t)
	f = f.moved(there, here.journal)
	f.sound()
	if _, err := blk.New(blk.Config{Path: disk}); !errors.Is(err, blk.ErrInUse) {
		t.Errorf("the disk is not locked: %v", err)
	}
	f.must(f.Use(func(m *machine.Machine) error {
		if mem, err := m.Memory().Share(); mem == nil || err != nil {
			return errors.Join(errors.New("it cannot be passed on"), err)
		} else {
			return mem.Close()
		}
	}))
}

// tunnel is a socket whose bytes are passed on to another one, without files.
func tunnel(t *testing.T, to string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "tunnel")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var passing sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		passing.Wait()
	})
	pass := func(to, from *net.UnixConn) {
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if _, wrong := to.Write(buf[:n]); err != nil || wrong != nil {
				break
			}
		}
		_, _ = to.Close(), from.Close()
	}
	passing.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", to)
			if err != nil {
				_ = c.Close()
				continue
			}
			near, far := c.(*net.UnixConn), out.(*net.UnixConn)
			passing.Go(func() { pass(far, near) })
			passing.Go(func() { pass(near, far) })
		}
	})
	return path
}
