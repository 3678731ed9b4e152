package usernet

import (
	"fmt"
	"net"
	"sync"

	"github.com/containers/gvisor-tap-vsock/pkg/services/dhcp"
	"github.com/containers/gvisor-tap-vsock/pkg/services/dns"
	"github.com/containers/gvisor-tap-vsock/pkg/services/forwarder"
	"github.com/containers/gvisor-tap-vsock/pkg/tap"
	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/godwit-vmm/godwit/devices/virtio/net/user"
)

const (
	nic     = 1
	dnsPort = 53
	// maxBuffer is the largest send and receive buffer of a connection. It
	// grows that far only where there is something to gain.
	maxBuffer = 4 << 20
)

// gatewayMAC is locally administered, and the one that gvisor-tap-vsock has.
const gatewayMAC = tcpip.LinkAddress("\x5a\x94\xef\xe4\x0c\xdd")

var (
	gatewayIP = tcpip.AddrFrom4Slice(net.ParseIP(user.GatewayIP).To4())
	hostIP    = tcpip.AddrFrom4Slice(net.ParseIP(user.HostIP).To4())
	loopback  = tcpip.AddrFrom4([4]byte{127, 0, 0, 1})
)

// newStack makes a stack on the link with its services. It listens on the
// forwards when it returns.
func newStack(l *link, s user.Settings) error {
	c := configuration(s)
	st := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := tune(st); err != nil {
		return fmt.Errorf("TCP options: %v", err)
	}
	if err := addInterface(st, l); err != nil {
		return fmt.Errorf("interface of the stack: %v", err)
	}
	nat := map[tcpip.Address]tcpip.Address{hostIP: loopback}
	var natLock sync.Mutex
	st.SetTransportProtocolHandler(tcp.ProtocolNumber, forwarder.TCP(st, nat, &natLock, false).HandlePacket)
	st.SetTransportProtocolHandler(udp.ProtocolNumber, forwarder.UDP(st, nat, &natLock, false).HandlePacket)
	if err := serveDNS(st, c); err != nil {
		return fmt.Errorf("DNS server: %w", err)
	}
	if err := serveDHCP(st, c); err != nil {
		return fmt.Errorf("DHCP server: %w", err)
	}
	return forward(st, s.Forwards)
}

// configuration is what the services of the library want to know.
func configuration(s user.Settings) *types.Configuration {
	hosts := []types.Record{
		{Name: "gateway", IP: net.ParseIP(user.GatewayIP)},
		{Name: "host", IP: net.ParseIP(user.HostIP)},
	}
	return &types.Configuration{
		MTU: s.MTU, Subnet: user.Subnet, GatewayIP: user.GatewayIP, GatewayMacAddress: net.HardwareAddr(gatewayMAC).String(),
		DNS:              []types.Zone{{Name: "containers.internal.", Records: hosts}, {Name: "docker.internal.", Records: hosts}},
		DHCPStaticLeases: map[string]string{user.GuestIP: net.HardwareAddr(s.MAC[:]).String()},
	}
}

// tune sets the stack up for a link that is fast and loses nothing.
func tune(st *stack.Stack) tcpip.Error {
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tcp.DefaultReceiveBufferSize, Max: maxBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tcp.DefaultSendBufferSize, Max: maxBuffer}
	for _, option := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &receive, &send} {
		if err := st.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return err
		}
	}
	return nil
}

// addInterface gives the stack the gateway's address on the link. It takes
// packets to all addresses and answers in their name: that is what makes it the
// way to everywhere.
func addInterface(st *stack.Stack, l *link) tcpip.Error {
	if err := st.CreateNIC(nic, l); err != nil {
		return err
	}
	address := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: gatewayIP.WithPrefix()}
	if err := st.AddProtocolAddress(nic, address, stack.AddressProperties{}); err != nil {
		return err
	}
	if err := st.SetSpoofing(nic, true); err != nil {
		return err
	}
	if err := st.SetPromiscuousMode(nic, true); err != nil {
		return err
	}
	subnet := tcpip.AddressWithPrefix{Address: gatewayIP, PrefixLen: 24}.Subnet()
	st.SetRouteTable([]tcpip.Route{{Destination: subnet, NIC: nic}})
	return nil
}

// serveDNS answers at the gateway's address, with the resolver of the host.
func serveDNS(st *stack.Stack, c *types.Configuration) error {
	at := tcpip.FullAddress{NIC: nic, Addr: gatewayIP, Port: dnsPort}
	packets, err := gonet.DialUDP(st, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	streams, err := gonet.ListenTCP(st, at, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	server, err := dns.New(packets, streams, c.DNS)
	if err != nil {
		return err
	}
	// Both go on as long as the process.
	go func() { _ = server.Serve() }()
	go func() { _ = server.ServeTCP() }()
	return nil
}

// serveDHCP gives the guest its address, and others to further interfaces in it.
func serveDHCP(st *stack.Stack, c *types.Configuration) error {
	_, subnet, err := net.ParseCIDR(c.Subnet)
	if err != nil {
		return err
	}
	pool := tap.NewIPPool(subnet)
	pool.Reserve(net.ParseIP(user.GatewayIP), c.GatewayMacAddress)
	pool.Reserve(net.ParseIP(user.HostIP), c.GatewayMacAddress)
	for ip, mac := range c.DHCPStaticLeases {
		pool.Reserve(net.ParseIP(ip), mac)
	}
	server, err := dhcp.New(c, st, pool)
	if err != nil {
		return err
	}
	go func() { _ = server.Serve() }()
	return nil
}

// forward listens on ports of the host.
func forward(st *stack.Stack, forwards []user.Forward) error {
	ports := forwarder.NewPortsForwarder(st)
	for _, f := range forwards {
		to := net.JoinHostPort(user.GuestIP, fmt.Sprint(f.Guest))
		if err := ports.Expose(types.TransportProtocol(f.Protocol), f.Host.String(), to); err != nil {
			return fmt.Errorf("forward %v: %w", f, err)
		}
	}
	return nil
}
