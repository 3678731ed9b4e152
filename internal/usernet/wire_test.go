package usernet

import (
	"bytes"
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio/net/user"
)

// wire is a socket to a network that is served by this process.
type wire struct {
	t     testing.TB
	fd    int
	ended chan error
}

// serve starts a network and sends it the settings, which may be wrong.
func serve(t testing.TB, settings []byte) (w *wire, answer string) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	w = &wire{t, fds[0], make(chan error, 1)}
	go func() {
		w.ended <- Serve(fds[1])
		unix.Close(fds[1])
	}()
	tv := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	w.write(settings)
	return w, string(w.read())
}

// start starts a network with good settings, and ends it with the test.
func start(t testing.TB, s user.Settings) *wire {
	t.Helper()
	p, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	w, answer := serve(t, p)
	if answer != user.OK {
		t.Fatal(answer)
	}
	t.Cleanup(func() {
		if err := unix.Close(w.fd); err != nil {
			t.Error(err)
		}
		select {
		case err := <-w.ended:
			if err != nil {
				t.Errorf("the network ended with %v", err)
			}
		case <-time.After(patience):
			t.Error("the network does not end when its socket is closed")
		}
	})
	return w
}

func (w *wire) write(p []byte) {
	w.t.Helper()
	if _, err := unix.Write(w.fd, p); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) read() []byte {
	w.t.Helper()
	p := make([]byte, maxFrame)
	n, err := unix.Read(w.fd, p)
	for err == unix.EINTR {
		n, err = unix.Read(w.fd, p)
	}
	if err != nil {
		w.t.Fatalf("no frame from the network: %v", err)
	}
	return p[:n]
}

// send sends a frame that is made of layers.
func (w *wire) send(l ...gopacket.SerializableLayer) {
	w.t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...); err != nil {
		w.t.Fatal(err)
	}
	w.write(append(make([]byte, vnetHeader), b.Bytes()...))
}

// receive returns the next frame.
func (w *wire) receive() gopacket.Packet {
	w.t.Helper()
	return gopacket.NewPacket(w.read()[vnetHeader:], layers.LayerTypeEthernet, gopacket.Default)
}

var (
	broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	guestHW   = net.HardwareAddr(guestMAC[:])
	gatewayHW = net.HardwareAddr(gatewayMAC)
)

// TestDHCP gets the addresses that the guest is to have.
func TestDHCP(t *testing.T) {
	w := start(t, user.Settings{MAC: guestMAC, MTU: 1400})
	var offer *dhcpv4.DHCPv4
	ask := func(m *dhcpv4.DHCPv4, err error) *dhcpv4.DHCPv4 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IPv4zero, DstIP: net.IPv4bcast}
		udp := &layers.UDP{SrcPort: 68, DstPort: 67}
		if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		w.send(&layers.Ethernet{SrcMAC: guestHW, DstMAC: broadcast, EthernetType: layers.EthernetTypeIPv4}, ip, udp, gopacket.Payload(m.ToBytes()))
		for {
			p := w.receive()
			if u, ok := p.TransportLayer().(*layers.UDP); ok && u.DstPort == 68 {
				reply, err := dhcpv4.FromBytes(u.Payload)
				if err != nil {
					t.Fatal(err)
				}
				return reply
			}
		}
	}
	offer = ask(dhcpv4.NewDiscovery(guestHW))
	ack := ask(dhcpv4.NewRequestFromOffer(offer))
	if ack.MessageType() != dhcpv4.MessageTypeAck || ack.YourIPAddr.String() != user.GuestIP {
		t.Errorf("%v of %v, want an acknowledgement of %s", ack.MessageType(), ack.YourIPAddr, user.GuestIP)
	}
	if r, d := ack.Router(), ack.DNS(); len(r) != 1 || r[0].String() != user.GatewayIP || len(d) != 1 || d[0].String() != user.GatewayIP {
		t.Errorf("router %v and DNS server %v, want %s", r, d, user.GatewayIP)
	}
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options); err != nil || mtu != 1400 {
		t.Errorf("MTU %d, %v", mtu, err)
	}
}

// TestARP tests that the stack answers for its own addresses and for no other,
// so that the guest may take one.
func TestARP(t *testing.T) {
	w := start(t, user.Settings{MAC: guestMAC})
	ask := func(ip string) {
		w.send(&layers.Ethernet{SrcMAC: guestHW, DstMAC: broadcast, EthernetType: layers.EthernetTypeARP}, &layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation: layers.ARPRequest, SourceHwAddress: guestHW, SourceProtAddress: net.ParseIP(user.GuestIP).To4(),
			DstHwAddress: make([]byte, 6), DstProtAddress: net.ParseIP(ip).To4(),
		})
	}
	ask(user.GuestIP)
	ask("192.168.127.77")
	for _, ip := range []string{user.GatewayIP, user.HostIP} {
		ask(ip)
		a, ok := w.receive().Layer(layers.LayerTypeARP).(*layers.ARP)
		if !ok || a.Operation != layers.ARPReply || net.IP(a.SourceProtAddress).String() != ip || !bytes.Equal(a.SourceHwAddress, gatewayHW) {
			t.Errorf("answer for %s: %+v", ip, a)
		}
	}
}

// TestGarbage tests that frames which make no sense do no harm.
func TestGarbage(t *testing.T) {
	w := start(t, user.Settings{MAC: guestMAC})
	eth := append(append(append(make([]byte, vnetHeader), gatewayHW...), guestHW...), 8, 0)
	for _, p := range [][]byte{
		{1}, make([]byte, vnetHeader), make([]byte, vnetHeader+ethernetHeader-1), make([]byte, vnetHeader+ethernetHeader),
		eth, append(bytes.Clone(eth), 0x45), append(bytes.Clone(eth), 0x40, 0, 0, 0), append(bytes.Clone(eth), bytes.Repeat([]byte{0x4f}, 30)...),
		append(bytes.Clone(eth), bytes.Repeat([]byte{0xff}, 60000)...), bytes.Repeat([]byte{0xff}, maxFrame),
		{0xff, 0xff, 0xff, 0xff}, // offloads that there are not
	} {
		w.write(p)
	}
	// It still answers.
	w.send(&layers.Ethernet{SrcMAC: guestHW, DstMAC: gatewayHW, EthernetType: layers.EthernetTypeIPv4},
		&layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolICMPv4, SrcIP: net.ParseIP(user.GuestIP), DstIP: net.ParseIP(user.GatewayIP)},
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: 7, Seq: 1})
	for {
		p := w.receive()
		if a, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok && a.Operation == layers.ARPRequest {
			w.send(&layers.Ethernet{SrcMAC: guestHW, DstMAC: gatewayHW, EthernetType: layers.EthernetTypeARP}, &layers.ARP{
				AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
				Operation: layers.ARPReply, SourceHwAddress: guestHW, SourceProtAddress: net.ParseIP(user.GuestIP).To4(),
				DstHwAddress: gatewayHW, DstProtAddress: net.ParseIP(user.GatewayIP).To4(),
			})
		}
		if i, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok && i.Id == 7 {
			return
		}
	}
}

func TestSettingsRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, test := range []struct{ settings, want string }{
		{"{", "settings: "},
		{`{"MTU": 100}`, "MTU 100"},
		{`{"Forwards": [{"Protocol": "icmp"}]}`, `"icmp"`},
		{`{"Forwards": [{"Protocol": "tcp", "Host": "` + l.Addr().String() + `", "Guest": 80}]}`, "address already in use"},
	} {
		w, answer := serve(t, []byte(test.settings))
		if !strings.Contains(answer, test.want) {
			t.Errorf("settings %s: answer %q, want %q in it", test.settings, answer, test.want)
		}
		if err := <-w.ended; err == nil {
			t.Errorf("settings %s: ended without an error", test.settings)
		}
		unix.Close(w.fd)
	}
}
