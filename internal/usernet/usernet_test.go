package usernet

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	virtionet "github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/devices/virtio/net/user"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

const patience = 20 * time.Second

func guestAddress(ip string, port uint16) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: guestNIC, Addr: tcpip.AddrFrom4Slice(net.ParseIP(ip).To4()), Port: port}
}

// pattern is data that shows where it was damaged.
func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i>>16 ^ i>>8*3 ^ i)
	}
	return p
}

// echoes sends data over a connection and expects it back.
func echoes(t *testing.T, what string, c net.Conn, data []byte) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- err
	}()
	back := make([]byte, len(data))
	if n, err := io.ReadFull(c, back); err != nil {
		t.Fatalf("%s: %v after %d of %d bytes", what, err, n, len(data))
	}
	if err := <-sent; err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if !bytes.Equal(back, data) {
		t.Fatalf("%s: %d bytes came back damaged", what, len(data))
	}
}

// echoServer sends back what comes, on each connection.
func echoServer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

// TestGuestReachesHost tests that a guest reaches a server on the host's
// loopback, at the host's address in its network.
func TestGuestReachesHost(t *testing.T) {
	g := newGuest(t, startUser(t))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go echoServer(l)
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	for i := range 3 {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err := gonet.DialContextTCP(ctx, g.stack, guestAddress(user.HostIP, port), ipv4.ProtocolNumber)
		if err != nil {
			t.Fatal(err)
		}
		echoes(t, "the host", c, pattern(1<<20+i))
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestForwards tests that the host reaches servers of the guest.
func TestForwards(t *testing.T) {
	forward := user.Forward{Protocol: "tcp", Host: freePort(t, "tcp"), Guest: 80}
	packets := user.Forward{Protocol: "udp", Host: freePort(t, "udp"), Guest: 53}
	g := newGuest(t, startUser(t, forward, packets))
	l, err := gonet.ListenTCP(g.stack, guestAddress(user.GuestIP, 80), ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go echoServer(l)
	for i := range 3 {
		c, err := net.Dial("tcp", forward.Host.String())
		if err != nil {
			t.Fatal(err)
		}
		echoes(t, "the guest", c, pattern(1<<20+i))
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}

	at := guestAddress(user.GuestIP, 53)
	u, err := gonet.DialUDP(g.stack, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	go func() {
		p := make([]byte, 2048)
		for {
			n, from, err := u.ReadFrom(p)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(p[:n], from)
		}
	}()
	c, err := net.Dial("udp", packets.Host.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for n := range 5 {
		echoes(t, "packets to the guest", c, pattern(1000+n))
	}
}

// freePort is an address of the host at which nobody listens just now.
func freePort(t *testing.T, network string) netip.AddrPort {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// TestDNS resolves names: those of the network itself, and one that the host's
// resolver knows.
func TestDNS(t *testing.T) {
	g := newGuest(t, startUser(t))
	names := map[string]string{
		"host.containers.internal.": user.HostIP, "gateway.containers.internal.": user.GatewayIP,
		"host.docker.internal.": user.HostIP,
	}
	// A name in the hosts file of the host.
	if name, err := os.Hostname(); err == nil {
		if ips, err := net.DefaultResolver.LookupIP(context.Background(), "ip4", name+"."); err == nil {
			names[name+"."] = ips[0].String()
		}
	}
	for name, want := range names {
		at := guestAddress(user.GatewayIP, 53)
		c, err := gonet.DialUDP(g.stack, nil, &at, ipv4.ProtocolNumber)
		if err != nil {
			t.Fatal(err)
		}
		m := new(dns.Msg).SetQuestion(name, dns.TypeA)
		answer, _, err := (&dns.Client{Timeout: patience}).ExchangeWithConn(m, &dns.Conn{Conn: c})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(answer.Answer) == 0 || !strings.HasSuffix(answer.Answer[0].String(), "\t"+want) {
			t.Errorf("%s: %v, want %s", name, answer.Answer, want)
		}
		c.Close()
	}
}

// TestEnds tests that the process ends with the socket to it.
func TestEnds(t *testing.T) {
	n := startUser(t)
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if got := n.Err().Error(); !strings.Contains(got, "exit status 0") {
		t.Errorf("after Close: %s", got)
	}
}

// TestDies tests that a network process that dies takes the guest's link along,
// and that the operator learns why.
func TestDies(t *testing.T) {
	n := startUser(t)
	warnings := make(chan error, 10)
	d, err := virtionet.New(virtionet.Config{MAC: guestMAC, Backend: n, Warn: func(err error) { warnings <- err }})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	g := virtiotest.Start(t, d, virtiotest.Options{})
	q := g.Queues[0]
	q.Publish(q.Chain(virtiotest.Buffer{GPA: g.Memory.Alloc(4096, 16), Len: 4096, Write: true}))
	q.Kick()
	if err := unix.Kill(n.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	g.AwaitConfigChange()
	if status := g.Config(6, 1)[0]; status != 0 {
		t.Errorf("status %d, want link down", status)
	}
	if err := <-warnings; !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("warning %v", err)
	}
	g.Stop()
}

// TestNoOrphan tests that the process ends when the hypervisor is killed.
func TestNoOrphan(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(self)
	c.Env = append(os.Environ(), asHypervisor+"=1")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	child, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(child)
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // says that it was killed
	ended := []unix.PollFd{{Fd: int32(child), Events: unix.POLLIN}}
	if n, err := unix.Poll(ended, int(patience.Milliseconds())); n != 1 {
		t.Errorf("the network process %d outlives the hypervisor: %v", pid, err)
	}
}

func TestStartErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(asProgram, "1")
	port := taken.Addr().(*net.TCPAddr).AddrPort()
	for _, test := range []struct {
		name, want string
		c          user.Config
	}{
		{"port in use", "address already in use", user.Config{Program: self, Settings: user.Settings{Forwards: []user.Forward{{Protocol: "tcp", Host: port, Guest: 80}}}}},
		{"protocol", "want tcp or udp", user.Config{Program: self, Settings: user.Settings{Forwards: []user.Forward{{Protocol: "sctp", Host: port, Guest: 80}}}}},
		{"no guest port", "a port of the guest", user.Config{Program: self, Settings: user.Settings{Forwards: []user.Forward{{Protocol: "tcp", Host: port}}}}},
		{"MTU", "MTU 70000", user.Config{Program: self, Settings: user.Settings{MTU: 70000}}},
		{"no program", "no such file", user.Config{Program: "/none/godwit-net"}},
		{"program not found", "nor in PATH", user.Config{}},
		{"another program", "ended (exit status 1)", user.Config{Program: "/bin/false"}},
	} {
		t.Setenv("PATH", "")
		if n, err := user.Start(test.c); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q in it", test.name, err, test.want)
			if err == nil {
				n.Close()
			}
		}
	}
}
