package uffd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

// handlerVariable makes the test's binary a handler at a socket.
const handlerVariable = "GODWIT_TEST_UFFD_HANDLER"

func TestMain(m *testing.M) {
	if path := os.Getenv(handlerVariable); path != "" {
		if err := handle(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const handledSize = 4 << 20

// handle is a handler for one guest, and ends with it.
func handle(path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	conn, err := l.AcceptUnix()
	if err != nil {
		return err
	}
	fd, mappings, err := Receive(conn, handledSize)
	if err != nil {
		return err
	}
	s, err := NewServer(fd, Config{Mappings: mappings, Source: newImage(handledSize)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = conn.Read(make([]byte, 1)) // ends with the guest's process
		cancel()
	}()
	return s.Serve(ctx)
}

// startHandler starts another process that serves one guest.
func startHandler(t *testing.T) (path string, handler *exec.Cmd) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "socket")
	handler = exec.Command(os.Args[0])
	handler.Env = append(os.Environ(), handlerVariable+"="+path)
	handler.Stderr = os.Stderr
	out, err := handler.StdoutPipe()
	if err == nil {
		err = handler.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = handler.Process.Kill() })
	if _, err := io.ReadFull(out, make([]byte, len("ready"))); err != nil {
		t.Fatal(err)
	}
	return path, handler
}

// TestHandler has another process serve this one's memory.
func TestHandler(t *testing.T) {
	fd := openFD(t, Options{Removals: true})
	path, handler := startHandler(t)
	g := newGuest(t, fd, memory.Options{Size: handledSize})
	h, err := Connect(path, fd, Of(g))
	if err != nil {
		t.Fatal(err)
	}
	// Nobody here has to Await: it is the other process that must not be stopped.
	mem := g.Regions()[0].Mem
	if !bytes.Equal(mem, newImage(handledSize).mem) {
		t.Error("the memory is not what the handler has")
	}
	if err := unix.Madvise(mem[3*page:4*page], unix.MADV_REMOVE); err != nil {
		t.Fatal(err)
	}
	if mem[3*page] != 0 || mem[4*page] != 4 {
		t.Errorf("pages 3 and 4 begin with %d and %d after one was given back", mem[3*page], mem[4*page])
	}
	waited := make(chan error, 1)
	go func() { waited <- h.Wait() }()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if err := <-waited; err != nil {
		t.Errorf("a handler that runs: %v", err)
	}
	if err := handler.Wait(); err != nil {
		t.Errorf("handler: %v", err)
	}
}

// TestHandlerEnds has a handler that ends because it does not serve so much memory. Who
// waits for a page fails when we give it up.
func TestHandlerEnds(t *testing.T) {
	fd := openFD(t, Options{Removals: true})
	path, handler := startHandler(t)
	g := newGuest(t, fd, memory.Options{Size: 2 * handledSize})
	mappings := Of(g)
	h, err := Connect(path, fd, mappings)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	waited := make(chan error, 1)
	go func() { waited <- memory.Await(g.Regions()[0].Mem[:page]) }()
	if err := h.Wait(); !errors.Is(err, ErrHandlerEnded) {
		t.Errorf("a handler that has ended: %v", err)
	}
	if err := handler.Wait(); err == nil {
		t.Error("the handler serves more memory than there is")
	}
	err = fd.GiveUp(mappings[0])
	if errors.Is(err, unix.EINVAL) {
		testenv.Lacks(t, "no poisoned pages: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err == nil {
		t.Error("who waits for a page gets one")
	}
}

// messageOf is what Connect sends of a guest's memory.
func messageOf(t testing.TB, layouts ...layout) []byte {
	t.Helper()
	text, err := json.Marshal(layouts)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestDecode(t *testing.T) {
	const size = 1 << 20
	good := layout{0x7000_0000_0000, size, 0, page, page}
	old := good
	old.PageSize = 0
	for _, test := range []struct {
		name string
		text []byte
		want string // of the error
	}{
		{"good", messageOf(t, good), ""},
		{"old", messageOf(t, old), ""},
		{"two", messageOf(t, layout{good.Addr, size / 2, 0, page, page}, layout{good.Addr + size, size / 2, size / 2, page, page}), ""},
		{"no list", []byte(`{}`), "list of mappings"},
		{"none", []byte(`[]`), "want 1 to 64"},
		{"many", messageOf(t, make([]layout, maxMappings+1)...), "want 1 to 64"},
		{"no pages", messageOf(t, layout{good.Addr, size, 0, 0, 0}), "host pages of 0 bytes"},
		{"odd pages", messageOf(t, layout{good.Addr, size, 0, 3 * page, 0}), "host pages of 12288 bytes"},
		{"small pages", messageOf(t, layout{good.Addr, size, 0, 512, 0}), "host pages of 512 bytes"},
		{"pages differ", messageOf(t, good, layout{0, size, size, 2 * page, 0}), "of 4096 in another"},
		{"half a page", messageOf(t, layout{good.Addr, size - 1, 0, page, 0}), "not whole pages"},
		{"empty", messageOf(t, layout{good.Addr, 0, 0, page, 0}), "at most"},
		{"huge", messageOf(t, layout{good.Addr, 1 << 63, 0, page, 0}), "at most"},
		{"far away", messageOf(t, layout{good.Addr, page, 1 << 63, page, 0}), "at most"},
		{"around the end", messageOf(t, layout{^uint64(0) &^ (page - 1), 2 * page, 0, page, 0}), "at most"},
		{"overlap", messageOf(t, good, layout{good.Addr + page, page, size, page, 0}), "overlaps"},
		{"offsets overlap", messageOf(t, good, layout{0, page, 0, page, 0}), "overlaps"},
		{"too large", messageOf(t, layout{good.Addr, size + page, 0, page, 0}), "there are 1048576"},
	} {
		_, err := decode(test.text, size)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

// TestReceiveRefuses has peers that do not send what they should.
func TestReceiveRefuses(t *testing.T) {
	uffd := openFD(t, Options{})
	pipe, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer other.Close()
	good := string(messageOf(t, layout{0, handledSize, 0, page, 0}))
	for _, test := range []struct {
		name string
		text string
		fds  []int
		want string
	}{
		{"no descriptor", good, nil, "0 descriptors"},
		{"two", good, []int{uffd.FD(), uffd.FD()}, "one"},
		{"another kind", good, []int{int(pipe.Fd())}, "pipe"},
		{"long", strings.Repeat(" ", maxMessage) + good, []int{uffd.FD()}, "more than"},
		{"nonsense", "nonsense", []int{uffd.FD()}, "list of mappings"},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := descriptors(t)
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			here, there := unixConn(t, pair[0]), unixConn(t, pair[1])
			if _, _, err := here.WriteMsgUnix([]byte(test.text), unix.UnixRights(test.fds...), nil); err != nil {
				t.Fatal(err)
			}
			here.Close()
			if _, _, err := Receive(there, handledSize); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			there.Close()
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors are open, %d before", after, before)
			}
		})
	}
}

func unixConn(t *testing.T, fd int) *net.UnixConn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn)
}

func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func FuzzDecode(f *testing.F) {
	f.Add(messageOf(f, layout{0x7000_0000_0000, 1 << 20, 0, page, page}))
	f.Add(messageOf(f, layout{0, 1 << 19, 0, page, 0}, layout{1 << 32, 1 << 19, 1 << 19, 0, page}))
	f.Fuzz(func(t *testing.T, text []byte) {
		const size = 1 << 20
		mappings, err := decode(text, size)
		if err != nil {
			return
		}
		s, err := NewServer(nil, Config{Mappings: mappings})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range mappings {
			last := m.Size - 1
			addr, n, ok := s.at(m.Offset + last)
			offset, _, ok2 := s.offset(m.Addr + last)
			if !ok || !ok2 || addr != m.Addr+last || offset != m.Offset+last || n != 1 {
				t.Errorf("end of %+v: address %#x, offset %#x", m, addr, offset)
			}
		}
		if s.Missing() > size {
			t.Errorf("%d bytes are missing", s.Missing())
		}
	})
}
