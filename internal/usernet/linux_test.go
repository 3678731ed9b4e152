package usernet

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio/net/tap"
	"github.com/godwit-vmm/godwit/devices/virtio/net/user"
	"github.com/godwit-vmm/godwit/internal/testenv"
)

// linuxGuest makes this host's kernel the guest: a tap interface in a network
// namespace of its own is connected to the network. The calling thread is in
// that namespace from then on, and sockets that it makes are the guest's.
func linuxGuest(t testing.TB, forwards ...user.Forward) {
	t.Helper()
	if os.Getuid() != 0 {
		testenv.Lacks(t, "making tap interfaces needs root")
	}
	n := startUser(t, forwards...)
	runtime.LockOSThread() // without Unlock: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	b, err := tap.Open(tap.Config{Name: "guest0"})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []interface{ SetOffloads(uint32) error }{n, b} {
		if err := o.SetOffloads(user.Offloads); err != nil {
			t.Fatal(err)
		}
	}
	for _, command := range []string{
		"ip link set lo up", "ip link set guest0 address 02:00:00:00:00:42",
		"ip address add " + user.GuestIP + "/24 dev guest0", "ip route add default via " + user.GatewayIP,
	} {
		words := strings.Fields(command)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	var wg sync.WaitGroup
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { pump(t, n.Descriptors()[0], b.Descriptors()[0], stop) })
	wg.Go(func() { pump(t, b.Descriptors()[0], n.Descriptors()[0], stop) })
	t.Cleanup(func() {
		if _, err := unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if err := errors.Join(n.Close(), b.Close(), unix.Close(stop)); err != nil {
			t.Error(err)
		}
	})
}

// pump carries frames with their headers.
func pump(t testing.TB, from, to, stop int) {
	p := make([]byte, maxFrame+1)
	wait := func(fd int, event int16) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: event}, {Fd: int32(stop), Events: unix.POLLIN}}
		_, err := unix.Poll(fds, -1)
		return (err == nil || errors.Is(err, unix.EINTR)) && fds[1].Revents == 0
	}
	for {
		n, err := unix.Read(from, p)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			if !wait(from, unix.POLLIN) {
				return
			}
			continue
		}
		if err != nil || n == 0 {
			t.Errorf("read: %v", err)
			return
		}
		for {
			_, err := unix.Write(to, p[:n])
			if err == nil || errors.Is(err, unix.EINVAL) {
				break
			}
			if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
				t.Errorf("write: %v", err)
				return
			}
			if !wait(to, unix.POLLOUT) {
				return
			}
		}
	}
}

// hostServer runs a server on the host's loopback, in the namespace of the
// caller.
func hostServer(t testing.TB, serve func(net.Conn)) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// TestLinuxGuest checks data both ways between a Linux kernel, which segments
// and sums as guests do, and the host.
func TestLinuxGuest(t *testing.T) {
	port := hostServer(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	linuxGuest(t)
	for i := range 3 {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(user.HostIP, port), patience)
		if err != nil {
			t.Fatal(err)
		}
		echoes(t, "the host", c, pattern(8<<20+i))
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// BenchmarkLinuxGuest measures bulk TCP between a Linux guest and the host.
func BenchmarkLinuxGuest(b *testing.B) {
	const chunk = 1 << 20
	run := func(b *testing.B, port string, transfer func(net.Conn, int64) error) {
		linuxGuest(b)
		c, err := net.DialTimeout("tcp", net.JoinHostPort(user.HostIP, port), patience)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(chunk)
		b.ResetTimer()
		if err := transfer(c, int64(b.N)*chunk); err != nil {
			b.Fatal(err)
		}
	}
	data := make([]byte, chunk)
	b.Run("from-host", func(b *testing.B) {
		port := hostServer(b, func(c net.Conn) {
			for {
				if _, err := c.Write(data); err != nil {
					return
				}
			}
		})
		run(b, port, func(c net.Conn, n int64) error {
			_, err := io.CopyN(io.Discard, c, n)
			return err
		})
	})
	b.Run("to-host", func(b *testing.B) {
		got := make(chan int64)
		port := hostServer(b, func(c net.Conn) {
			n, _ := io.Copy(io.Discard, c)
			got <- n
		})
		run(b, port, func(c net.Conn, n int64) error {
			for left := n; left > 0; left -= chunk {
				if _, err := c.Write(data); err != nil {
					return err
				}
			}
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				return err
			}
			if g := <-got; g != n {
				return errors.New("data was lost")
			}
			return nil
		})
	})
}
