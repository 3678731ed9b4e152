package vmm

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/memory/uffd"
)

// needUserfaultfd skips the test where there is none.
func needUserfaultfd(t *testing.T) {
	t.Helper()
	fd, err := uffd.Open(uffd.Options{})
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	fd.Close()
}

// checkerSnapshot is a snapshot of a checker.
func checkerSnapshot(t *testing.T, change func(*Config) error) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshot")
	f := newVM(t, checker(t), nil)
	f.must(f.Configure(change))
	f.must(f.Start())
	f.runs()
	f.snapshot(SnapshotRequest{Path: path, Live: true, Stop: true})
	<-f.Done()
	return path
}

// handler serves one guest from the memory file of a snapshot, until the test ends, or
// not at all. It returns the socket, and what waits until somebody has come to be served.
func handler(t *testing.T, snapshot string, serve bool) (socket string, server func() *uffd.Server) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	content, err := os.ReadFile(filepath.Join(snapshot, MemoryFile))
	if err != nil {
		t.Fatal(err)
	}
	servers := make(chan *uffd.Server, 1)
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(ended)
		defer close(servers)
		conn, err := l.AcceptUnix()
		if err != nil {
			return // nobody came
		}
		defer conn.Close()
		fd, mappings, err := uffd.Receive(conn, uint64(len(content)))
		if err != nil {
			t.Error(err)
			return
		}
		defer fd.Close()
		if !serve {
			servers <- nil
			<-ctx.Done()
			return
		}
		s, err := uffd.NewServer(fd, uffd.Config{Mappings: mappings, Source: file(content)})
		if err != nil {
			t.Error(err)
			return
		}
		servers <- s
		if err := s.Serve(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		l.Close()
		<-ended
	})
	return socket, func() *uffd.Server { return <-servers }
}

// file is the content of a memory file.
type file []byte

func (f file) Page(_ context.Context, offset uint64) ([]byte, error) { return f[offset:], nil }

func TestUffdHandler(t *testing.T) {
	needUserfaultfd(t)
	path := checkerSnapshot(t, func(c *Config) error { c.Memory = 64 << 20; return nil })
	socket, server := handler(t, path, true)
	f := restored(t, LoadRequest{Path: path, Memory: socket, Uffd: true, Resume: true})
	s := server()
	f.sound()
	if s.Stats().Faults == 0 || s.Missing() == 0 {
		t.Errorf("%+v, %d bytes are missing: the guest uses only a part of its memory", s.Stats(), s.Missing())
	}
	t.Logf("%+v", s.Stats())
	// A snapshot of it has what the guest has not asked for, too.
	again := filepath.Join(t.TempDir(), "again")
	f.snapshot(SnapshotRequest{Path: again, Live: true, Stop: true})
	<-f.Done()
	restored(t, LoadRequest{Path: again, Resume: true}).sound()
}

// TestUffdHandlerHangs kills a guest whose handler does not serve it.
func TestUffdHandlerHangs(t *testing.T) {
	needUserfaultfd(t)
	path := checkerSnapshot(t, func(*Config) error { return nil })
	socket, server := handler(t, path, false)
	f := newVM(t, "", nil)
	loaded := make(chan error, 1)
	go func() { loaded <- f.Load(t.Context(), LoadRequest{Path: path, Memory: socket, Uffd: true}) }()
	server()
	f.Kill(nil)
	if err := <-loaded; err == nil {
		t.Error("a guest is restored without its memory")
	}
	<-f.Done()
}

func TestUffdNoHandler(t *testing.T) {
	needUserfaultfd(t)
	path := checkerSnapshot(t, func(*Config) error { return nil })
	f := newVM(t, "", nil)
	err := f.Load(t.Context(), LoadRequest{Path: path, Memory: filepath.Join(t.TempDir(), "nobody"), Uffd: true})
	if err == nil || !strings.Contains(err.Error(), "handler of page faults") {
		t.Errorf("%v, want one about the handler", err)
	}
	// The snapshot is not to blame.
	f.must(f.Load(t.Context(), LoadRequest{Path: path, Resume: true}))
	f.sound()
}

// TestRestoreHugePages has a guest with huge pages run before its memory is there.
func TestRestoreHugePages(t *testing.T) {
	needUserfaultfd(t)
	const size = 64 << 20
	testenv.HugePages(t, 2*size/(2<<20))
	path := checkerSnapshot(t, func(c *Config) error {
		c.Memory, c.HugePages = size, true
		return nil
	})
	f := restored(t, LoadRequest{Path: path, Resume: true})
	f.sound()
	for {
		over := false
		f.must(f.Use(func(m *machine.Machine) error {
			over = m.Memory().Pager() == memory.NoPager
			return nil
		}))
		if over {
			break
		}
		f.runs()
	}
	f.sound()
	// Before the rest of the memory has come, it is part of a snapshot all the same.
	again := filepath.Join(t.TempDir(), "again")
	g := restored(t, LoadRequest{Path: path})
	g.snapshot(SnapshotRequest{Path: again, Stop: true})
	<-g.Done()
	f.Kill(nil)
	<-f.Done()
	restored(t, LoadRequest{Path: again, Resume: true}).sound()
}
