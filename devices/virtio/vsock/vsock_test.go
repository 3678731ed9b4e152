package vsock

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

// newDevice makes a device whose host warns nobody.
func newDevice(t testing.TB) *Device {
	t.Helper()
	d, err := New(Config{Path: filepath.Join(t.TempDir(), "vsock"), Warn: func(err error) { t.Errorf("warning: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Stop()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// listenHost listens at a port of the host.
func listenHost(t testing.TB, d *Device, port uint32) net.Listener {
	t.Helper()
	l, err := Listen(d.cfg.Path, port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dialHost(t testing.TB, d *Device, port uint32) *net.UnixConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), virtiotest.Patience)
	defer cancel()
	c, err := Dial(ctx, d.cfg.Path, port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn)
}

// pair is a connection that the host opened, seen from both ends.
func pair(t testing.TB, d *Device, g *guest) (*net.UnixConn, *guestConn) {
	t.Helper()
	incoming := g.listen(77)
	host := dialHost(t, d, 77)
	return host, <-incoming
}

func TestConfigSpace(t *testing.T) {
	d := newDevice(t)
	if got := binary.LittleEndian.Uint64(configOf(d, 0, 8)); got != MinCID {
		t.Errorf("CID %d, want %d", got, MinCID)
	}
	if got := configOf(d, 6, 8); !bytes.Equal(got, make([]byte, 8)) {
		t.Errorf("behind the CID: % x", got)
	}
	d.WriteConfig(0, []byte{9})
	if got := configOf(d, 0, 1); got[0] != MinCID {
		t.Errorf("the driver changed the CID to %d", got[0])
	}
}

func configOf(d *Device, offset uint64, n int) []byte {
	p := bytes.Repeat([]byte{0xff}, n)
	d.ReadConfig(offset, p)
	return p
}

func TestBadConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vsock")
	for name, c := range map[string]Config{
		"CID of the host": {CID: 2, Path: path},
		"any CID":         {CID: 0xffff_ffff, Path: path},
		"no path":         {},
		"long path":       {Path: "/" + string(bytes.Repeat([]byte{'x'}, 100))},
		"no folder":       {Path: path + "/none"},
	} {
		if d, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
			d.Close()
		}
	}
}

func TestEcho(t *testing.T) {
	d := newDevice(t)
	g := startGuest(t, d, virtiotest.Options{})
	ask := func(t *testing.T, rw io.ReadWriter, text string) {
		t.Helper()
		if _, err := io.WriteString(rw, text); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(rw, got); err != nil || string(got) != text {
			t.Fatalf("got %q, %v, want %q", got, err, text)
		}
	}
	t.Run("host connects", func(t *testing.T) {
		incoming := g.listen(1234)
		go func() {
			c := <-incoming
			io.Copy(c, c)
		}()
		c := dialHost(t, d, 1234)
		ask(t, c, "hello")
		ask(t, c, "again")
	})
	t.Run("guest connects", func(t *testing.T) {
		l := listenHost(t, d, 99)
		go func() {
			if c, err := l.Accept(); err == nil {
				io.Copy(c, c)
				c.Close()
			}
		}()
		c, err := g.dial(99)
		if err != nil {
			t.Fatal(err)
		}
		ask(t, c, "hello")
		ask(t, c, "again")
	})
}

// TestGreeting has what programs may send before and with the first line.
func TestGreeting(t *testing.T) {
	d := newDevice(t)
	g := startGuest(t, d, virtiotest.Options{})
	incoming := g.listen(5)
	for _, tt := range []struct {
		name    string
		pieces  []string
		refused bool
		data    string
	}{
		{"in one piece", []string{"CONNECT 5\n"}, false, ""},
		{"in pieces", []string{"CON", "NECT", " 5", "\n"}, false, ""},
		{"lower case", []string{"connect 5\n"}, false, ""},
		{"with data", []string{"CONNECT 5\nhello\n"}, false, "hello\n"},
		{"no such port", []string{"CONNECT 6\n"}, true, ""},
		{"no number", []string{"CONNECT x\n"}, true, ""},
		{"large number", []string{"CONNECT 4294967296\n"}, true, ""},
		{"another word", []string{"GET / HTTP/1.0\r\n\r\n"}, true, ""},
		{"long line", []string{"CONNECT 5                                   \n"}, true, ""},
		{"no end", []string{string(bytes.Repeat([]byte{'1'}, 100))}, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := net.Dial("unix", d.cfg.Path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for _, p := range tt.pieces {
				if _, err := io.WriteString(c, p); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond) // so that they arrive as pieces
			}
			answer := make([]byte, 3)
			_, err = io.ReadFull(c, answer)
			if tt.refused {
				if err == nil {
					t.Errorf("answer %q, want the end", answer)
				}
				return
			}
			if err != nil || string(answer) != "OK " {
				t.Fatalf("answer %q, %v", answer, err)
			}
			k := <-incoming
			got := make([]byte, len(tt.data))
			if _, err := io.ReadFull(k, got); err != nil || string(got) != tt.data {
				t.Errorf("the guest got %q, %v, want %q", got, err, tt.data)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	d := newDevice(t)
	g := startGuest(t, d, virtiotest.Options{})
	if _, err := Dial(t.Context(), d.cfg.Path, 1); !errors.Is(err, ErrRefused) {
		t.Errorf("the host dials: %v", err)
	}
	if _, err := g.dial(1); !errors.Is(err, errReset) {
		t.Errorf("the guest dials: %v", err)
	}
}

// TestWarning has a path that cannot be connected to, for a reason that the host's
// user has to know of.
func TestWarning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vsock")
	warnings := make(chan error, 10)
	d, err := New(Config{Path: path, Warn: func(err error) { warnings <- err }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		d.Stop()
		d.Close()
	}()
	g := startGuest(t, d, virtiotest.Options{})
	if err := os.Symlink(path+"_3", path+"_3"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := g.dial(3); !errors.Is(err, errReset) {
			t.Errorf("the guest dials: %v", err)
		}
	}
	if err := <-warnings; !errors.Is(err, syscall.ELOOP) {
		t.Errorf("warned of %v", err)
	}
	if len(warnings) > 0 {
		t.Error("warned twice")
	}
}

// exchange sends much data in both directions at once and checks what comes,
// down to the end of file.
func exchange(t *testing.T, seed uint64, n int, host *net.UnixConn, guest *guestConn) {
	t.Helper()
	var wg sync.WaitGroup
	for _, dir := range []struct {
		seed uint64
		w    io.Writer
		r    io.Reader
		end  func()
	}{
		{seed, host, guest, func() { host.CloseWrite() }},
		{seed + 1, guest, host, func() { guest.shutdown(noSend) }},
	} {
		wg.Go(func() {
			if err := generate(dir.w, dir.seed, n); err != nil {
				t.Errorf("%d: write: %v", dir.seed, err)
			}
			dir.end()
		})
		wg.Go(func() {
			if err := verify(dir.r, dir.seed, n); err != nil {
				t.Errorf("%d: %v", dir.seed, err)
			}
		})
	}
	wg.Wait()
}

// generate writes n bytes that depend on the seed, in pieces of random sizes.
func generate(w io.Writer, seed uint64, n int) error {
	r := rand.New(rand.NewPCG(seed, 0))
	data := stream(seed, n)
	for len(data) > 0 {
		m := min(len(data), 1+r.IntN(100<<10))
		if _, err := w.Write(data[:m]); err != nil {
			return err
		}
		data = data[m:]
	}
	return nil
}

func stream(seed uint64, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return b
}

func verify(r io.Reader, seed uint64, n int) error {
	got, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("read: %w after %d bytes of %d", err, len(got), n)
	}
	if !bytes.Equal(got, stream(seed, n)) {
		return fmt.Errorf("got %d bytes of %d, or others than were sent", len(got), n)
	}
	return nil
}

// TestMany has 200 connections at once that exchange checked data, opened from
// either side, with all features and with the fewest.
func TestMany(t *testing.T) {
	for name, o := range map[string]virtiotest.Options{
		"all features": {},
		"few features": {Without: 1<<28 | 1<<29},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDevice(t)
			g := startGuest(t, d, o)
			incoming := g.listen(1000)
			l := listenHost(t, d, 2000)
			var wg sync.WaitGroup
			// The pairs find each other by a number that the dialer
			// sends first.
			hosts, guests := make(map[uint32]chan *net.UnixConn), make(map[uint32]chan *guestConn)
			const each = 100
			for i := range uint32(each) {
				hosts[i], guests[i] = make(chan *net.UnixConn, 1), make(chan *guestConn, 1)
			}
			wg.Go(func() {
				for range each {
					c := <-incoming
					var id [4]byte
					if _, err := io.ReadFull(c, id[:]); err != nil {
						t.Error(err)
						return
					}
					guests[binary.LittleEndian.Uint32(id[:])] <- c
				}
			})
			wg.Go(func() {
				for range each {
					c, err := l.Accept()
					if err != nil {
						t.Error(err)
						return
					}
					var id [4]byte
					if _, err := io.ReadFull(c, id[:]); err != nil {
						t.Error(err)
						return
					}
					hosts[binary.LittleEndian.Uint32(id[:])] <- c.(*net.UnixConn)
				}
			})
			const size = 300 << 10 // more than the largest window
			for i := range uint32(each) {
				id := binary.LittleEndian.AppendUint32(nil, i)
				wg.Go(func() {
					c := dialHost(t, d, 1000)
					c.Write(id)
					exchange(t, uint64(i)*4, size, c, <-guests[i])
					c.Close()
				})
				wg.Go(func() {
					c, err := g.dial(2000)
					if err != nil {
						t.Error(err)
						return
					}
					c.Write(id)
					host := <-hosts[i]
					exchange(t, uint64(i)*4+2, size, host, c)
					host.Close()
				})
			}
			wg.Wait()
			awaitEmpty(t, d, g)
		})
	}
}

// awaitEmpty waits until the guest has no connection any more, and checks that
// the device has none either.
func awaitEmpty(t *testing.T, d *Device, g *guest) {
	t.Helper()
	deadline := time.Now().Add(virtiotest.Patience)
	for {
		g.mu.Lock()
		n := len(g.conns)
		g.mu.Unlock()
		if n == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the guest still has %d connections", n)
		}
		time.Sleep(time.Millisecond)
	}
	// What the guest sent last may not be served yet.
	for {
		g.drv.Stop()
		n, held := d.total(), d.large
		if n == 0 && held == 0 && d.ready.first == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the device still has %d connections, %d of them large", n, held)
		}
		g.drv.Resume()
		time.Sleep(time.Millisecond)
	}
}
