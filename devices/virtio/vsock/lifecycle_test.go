package vsock

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

func TestHalfClose(t *testing.T) {
	d := newDevice(t)
	g := startGuest(t, d, virtiotest.Options{})
	t.Run("host first", func(t *testing.T) {
		host, guest := pair(t, d, g)
		io.WriteString(host, "question")
		host.CloseWrite()
		if got, err := io.ReadAll(guest); string(got) != "question" || err != nil {
			t.Fatalf("the guest got %q, %v", got, err)
		}
		io.WriteString(guest, "answer")
		guest.shutdown(noSend)
		if got, err := io.ReadAll(host); string(got) != "answer" || err != nil {
			t.Fatalf("the host got %q, %v", got, err)
		}
	})
	t.Run("guest first", func(t *testing.T) {
		host, guest := pair(t, d, g)
		io.WriteString(guest, "question")
		guest.shutdown(noSend)
		if got, err := io.ReadAll(host); string(got) != "question" || err != nil {
			t.Fatalf("the host got %q, %v", got, err)
		}
		io.WriteString(host, "answer")
		host.Close()
		if got, err := io.ReadAll(guest); string(got) != "answer" || err != nil {
			t.Fatalf("the guest got %q, %v", got, err)
		}
	})
	t.Run("the guest receives no more", func(t *testing.T) {
		host, guest := pair(t, d, g)
		guest.shutdown(noReceive)
		var err error
		for err == nil {
			_, err = host.Write(make([]byte, 1000))
		}
		if !errors.Is(err, syscall.EPIPE) {
			t.Errorf("the host writes: %v", err)
		}
		io.WriteString(guest, "last words")
		guest.shutdown(noSend)
		if got, err := io.ReadAll(host); string(got) != "last words" || err != nil {
			t.Fatalf("the host got %q, %v", got, err)
		}
		guest.awaitEnd()
	})
	awaitEmpty(t, d, g)
}

func TestPeerDies(t *testing.T) {
	d := newDevice(t)
	g := startGuest(t, d, virtiotest.Options{})
	t.Run("host, with nothing unread", func(t *testing.T) {
		host, guest := pair(t, d, g)
		io.WriteString(host, "bye")
		host.Close()
		if got, err := io.ReadAll(guest); string(got) != "bye" || err != nil {
			t.Errorf("the guest got %q, %v", got, err)
		}
		guest.awaitEnd()
	})
	t.Run("host, with unread data", func(t *testing.T) {
		host, guest := pair(t, d, g)
		io.WriteString(guest, "you will not read this")
		for n := 0; n == 0; { // it has arrived
			raw, _ := host.SyscallConn()
			raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
		}
		host.Close()
		if _, err := io.ReadAll(guest); !errors.Is(err, errReset) {
			t.Errorf("the guest reads: %v", err)
		}
	})
	t.Run("guest writes to a host that is gone", func(t *testing.T) {
		host, guest := pair(t, d, g)
		go host.Close()
		var err error
		for err == nil {
			_, err = guest.Write(make([]byte, 5000))
		}
		guest.shutdown(noMore)
		guest.awaitEnd()
	})
	t.Run("guest resets", func(t *testing.T) {
		host, guest := pair(t, d, g)
		g.mu.Lock()
		guest.control(opReset, 0)
		delete(g.conns, guest.ports)
		g.mu.Unlock()
		if got, err := io.ReadAll(host); len(got) != 0 || err != nil {
			t.Errorf("the host got %q, %v", got, err)
		}
	})
	t.Run("host, before the guest answers", func(t *testing.T) {
		g.mu.Lock()
		g.raw = true
		g.mu.Unlock()
		c, err := net.Dial("unix", d.cfg.Path)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "CONNECT 9\n")
		g.await(opRequest)
		c.Close()
		g.await(opReset)
		g.mu.Lock()
		g.raw = false
		g.mu.Unlock()
	})
	awaitEmpty(t, d, g)
}

// await waits for a packet of the device, in raw mode, and forgets those before.
func (g *guest) await(op operation) packet {
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		for i, p := range g.seen {
			if p.op == op {
				g.seen = g.seen[i+1:]
				return p
			}
		}
		g.change.Wait()
	}
}

// TestSlowHost has a host that does not read for a while: the guest runs out of
// credit, and nothing is lost.
func TestSlowHost(t *testing.T) {
	d := newDevice(t)
	g := startGuest(t, d, virtiotest.Options{})
	host, guest := pair(t, d, g)
	const size = 2 << 20
	wrote := make(chan error, 1)
	go func() {
		err := generate(guest, 1, size)
		guest.shutdown(noMore)
		wrote <- err
	}()
	for stuck := false; !stuck; time.Sleep(time.Millisecond) {
		g.mu.Lock()
		stuck = guest.peerAlloc != 0 && guest.txCount-guest.peerFwd == guest.peerAlloc
		g.mu.Unlock()
	}
	if err := verify(host, 1, size); err != nil {
		t.Error(err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	guest.awaitEnd()
	awaitEmpty(t, d, g)
}

// TestLateReader has a guest that ends a connection and forgets it while the
// host has not read all of it.
func TestLateReader(t *testing.T) {
	d := newDevice(t)
	g := startGuest(t, d, virtiotest.Options{})
	host, guest := pair(t, d, g)
	// As much as the guest can send without the host reading: more than the
	// socket takes.
	var sent int
	for {
		g.mu.Lock()
		credit := guest.peerAlloc - (guest.txCount - guest.peerFwd)
		g.mu.Unlock()
		if credit < 1000 && sent > 0 {
			break
		}
		n, err := guest.Write(stream(3, sent+int(min(credit, 1000)))[sent:])
		if err != nil {
			t.Fatal(err)
		}
		sent += n
	}
	guest.shutdown(noMore)
	g.mu.Lock()
	guest.control(opReset, 0)
	delete(g.conns, guest.ports)
	g.mu.Unlock()
	if err := verify(host, 3, sent); err != nil {
		t.Error(err)
	}
	awaitEmpty(t, d, g)
}

// TestStarved has no buffers in the rx queue while much is to be sent.
func TestStarved(t *testing.T) {
	d := newDevice(t)
	g := startGuest(t, d, virtiotest.Options{})
	host, guest := pair(t, d, g)
	g.setStarve(true)
	const size = 1 << 20
	wrote := make(chan error, 1)
	go func() {
		err := generate(host, 1, size)
		host.CloseWrite()
		wrote <- err
	}()
	// Connections that nobody answers yet, and the other direction goes on.
	refused := make(chan error, 10)
	for range cap(refused) {
		go func() {
			_, err := g.dial(4711)
			refused <- err
		}()
	}
	if err := generate(guest, 2, 100<<10); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100<<10)
	if _, err := io.ReadFull(host, got); err != nil || !bytes.Equal(got, stream(2, len(got))) {
		t.Fatalf("the host got other data than was sent, %v", err)
	}
	g.setStarve(false)
	if err := verify(guest, 1, size); err != nil {
		t.Error(err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	for range cap(refused) {
		if err := <-refused; !errors.Is(err, errReset) {
			t.Errorf("connection to nobody: %v", err)
		}
	}
}

// TestPause stops the device and starts it again in the middle of things.
func TestPause(t *testing.T) {
	d := newDevice(t)
	g := startGuest(t, d, virtiotest.Options{})
	host, guest := pair(t, d, g)
	done := make(chan struct{})
	go func() {
		defer close(done)
		exchange(t, 9, 4<<20, host, guest)
	}()
	for {
		g.drv.Stop()
		g.drv.Resume()
		select {
		case <-done:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func TestDriverReset(t *testing.T) {
	d := newDevice(t)
	g := startGuest(t, d, virtiotest.Options{})
	host, _ := pair(t, d, g)
	g.close()
	g.drv.Reset()
	if n, err := host.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("after a reset the host reads %d bytes, %v", n, err)
	}
	if d.total() != 0 || d.large != 0 {
		t.Errorf("%d connections are left", d.total())
	}
}

// TestBusyListener has a host's program that accepts nobody for a while, with
// the shortest queue there is.
func TestBusyListener(t *testing.T) {
	d := newDevice(t)
	g := startGuest(t, d, virtiotest.Options{})
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: d.cfg.Path + "_8"}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const n = 20
	dialed := make(chan error, n)
	for range n {
		go func() {
			_, err := g.dial(8)
			dialed <- err
		}()
	}
	if err := <-dialed; err != nil { // the one for which there is room
		t.Error(err)
	}
	for range n {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for range n - 1 {
		if err := <-dialed; err != nil {
			t.Error(err)
		}
	}
}

// TestLimits fills the table of connections from both sides.
func TestLimits(t *testing.T) {
	d := newDevice(t)
	g := startGuest(t, d, virtiotest.Options{})
	l := listenHost(t, d, 1)
	accepted := make(chan net.Conn, MaxConnections)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	defer func() {
		l.Close()
		for c := range accepted {
			c.Close()
		}
	}()
	var guests []*guestConn
	for range MaxConnections {
		c, err := g.dial(1)
		if err != nil {
			t.Fatalf("after %d connections: %v", len(guests), err)
		}
		guests = append(guests, c)
	}
	if _, err := g.dial(1); !errors.Is(err, errReset) {
		t.Errorf("one too many: %v", err)
	}
	// A program of the host waits until there is a place.
	incoming := g.listen(2)
	ctx, cancel := context.WithTimeout(t.Context(), virtiotest.Patience)
	defer cancel()
	dialed := make(chan error, 1)
	go func() {
		_, err := Dial(ctx, d.cfg.Path, 2)
		dialed <- err
	}()
	select {
	case <-incoming:
		t.Error("a connection too many")
	case <-time.After(20 * time.Millisecond):
	}
	guests[0].shutdown(noMore)
	<-incoming
	if err := <-dialed; err != nil {
		t.Error(err)
	}
}

func TestManyGreeters(t *testing.T) {
	d := newDevice(t)
	g := startGuest(t, d, virtiotest.Options{})
	incoming := g.listen(2)
	var silent []net.Conn
	for range maxGreeting {
		c, err := net.Dial("unix", d.cfg.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	dialed := make(chan error, 1)
	go func() {
		_, err := Dial(t.Context(), d.cfg.Path, 2)
		dialed <- err
	}()
	select {
	case <-incoming:
		t.Error("served in front of those who say nothing")
	case <-time.After(20 * time.Millisecond):
	}
	silent[0].Close()
	<-incoming
	if err := <-dialed; err != nil {
		t.Error(err)
	}
}

func TestSocketFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vsock")
	first, err := New(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := New(Config{Path: path}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second device at the same path: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	// One that a process left behind.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	again, err := New(Config{Path: path})
	if err != nil {
		t.Fatalf("in the place of a stale socket: %v", err)
	}
	again.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Path: path}); err == nil {
		t.Error("in the place of a file: no error")
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Error("the file is gone")
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vsock")
	l, err := Listen(path, 12)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path + "_12"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := Listen(path, 12); err == nil {
		t.Error("twice at the same port")
	}
	l.Close()
	if _, err := os.Stat(path + "_12"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if _, err := Listen(path+"/none", 12); err == nil {
		t.Error("in a folder that is not there")
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	d := newDevice(t) // never started
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, d.cfg.Path, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if _, err := Dial(t.Context(), d.cfg.Path+"x", 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a socket: %v", err)
	}
}
