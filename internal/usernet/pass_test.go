package usernet

import (
	"context"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"github.com/godwit-vmm/godwit/devices/virtio/net/user"
)

// passed is a network as another process gets it.
func passed(t *testing.T, from *user.Network) *user.Network {
	t.Helper()
	files, err := from.Files()
	if err != nil {
		t.Fatal(err)
	}
	to, err := user.FromFiles(files, 0)
	for _, f := range files {
		_ = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// TestPassed: a network goes from process to process, and ends with the last one.
func TestPassed(t *testing.T) {
	n := startUser(t)
	process, err := unix.PidfdOpen(n.PID(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(process)
	// One that does not come after all changes nothing.
	if err := passed(t, n).Close(); err != nil {
		t.Fatal(err)
	}
	// One that comes may pass it on.
	first := passed(t, n)
	if err := first.SetOffloads(0); err != nil {
		t.Fatal(err)
	}
	second := passed(t, first)
	for _, left := range []*user.Network{n, first} {
		left.Release()
		if err := left.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("guest", func(t *testing.T) {
		g := newGuest(t, second)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go echoServer(l)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := gonet.DialContextTCP(ctx, g.stack, guestAddress(user.HostIP, uint16(l.Addr().(*net.TCPAddr).Port)), ipv4.ProtocolNumber)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		echoes(t, "the host", c, pattern(1<<20))
	})
	// Close has waited for the end.
	ended := []unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}
	if n, err := unix.Poll(ended, 0); n != 1 {
		t.Errorf("the network process outlives its last user: %v", err)
	}
}

// TestPassedWrong: what is no network is refused.
func TestPassedWrong(t *testing.T) {
	n := startUser(t)
	defer n.Close()
	files, err := n.Files()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		defer f.Close()
	}
	if got, err := user.FromFiles(files[:1], 0); err == nil || !strings.Contains(err.Error(), "1 files") {
		t.Errorf("%v, %v", got, err)
	}
	files[0], files[1] = files[1], files[0]
	if got, err := user.FromFiles(files, 0); err == nil || !strings.Contains(err.Error(), "it is no socket") {
		t.Errorf("%v, %v", got, err)
	}
}
