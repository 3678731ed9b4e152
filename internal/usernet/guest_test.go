package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	virtionet "github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/devices/virtio/net/user"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

var guestMAC = virtionet.MAC{2, 0, 0, 0, 0, 0x42}

// asProgram makes the test binary behave as godwit-net, and asHypervisor as one
// that has started it.
const (
	asProgram    = "GODWIT_TEST_AS_NET"
	asHypervisor = "GODWIT_TEST_AS_HYPERVISOR"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asProgram) != "":
		exit(errors.Join(Limit(), Serve(user.Descriptor)))
	case os.Getenv(asHypervisor) != "":
		self, err := os.Executable()
		exit(errors.Join(err, os.Unsetenv(asHypervisor), os.Setenv(asProgram, "1"), hypervise(self)))
	}
	os.Exit(m.Run())
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// hypervise starts a network, says its process number and never ends.
func hypervise(program string) error {
	n, err := user.Start(user.Config{Program: program})
	if err != nil {
		return err
	}
	fmt.Println(n.PID())
	select {}
}

// startUser starts the network with the test binary as its program.
func startUser(t testing.TB, forwards ...user.Forward) *user.Network {
	t.Helper()
	t.Setenv(asProgram, "1")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	n, err := user.Start(user.Config{Program: self, Settings: user.Settings{MAC: guestMAC, Forwards: forwards}})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// guest is a network stack behind a virtio network device.
type guest struct {
	*virtiotest.Driver
	device *virtionet.Device
	stack  *stack.Stack
}

const (
	guestNIC  = 1
	vnetSize  = 12
	rxBuffers = 128
	rxSize    = 2048
	txSize    = 2048
)

// newGuest makes a guest with the address that DHCP gives.
func newGuest(t testing.TB, backend virtionet.Backend) *guest {
	t.Helper()
	d, err := virtionet.New(virtionet.Config{MAC: guestMAC, Backend: backend, Warn: func(err error) { t.Errorf("warning: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	g := &guest{device: d, Driver: virtiotest.Start(t, d, virtiotest.Options{})}
	card := channel.New(256, user.DefaultMTU, tcpip.LinkAddress(guestMAC[:]))
	card.LinkEPCapabilities = stack.CapabilityRXChecksumOffload | stack.CapabilityResolutionRequired
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := g.stack.CreateNIC(guestNIC, ethernet.New(card)); err != nil {
		t.Fatal(err)
	}
	address := tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4Slice(net.ParseIP(user.GuestIP).To4()), PrefixLen: 24}
	if err := g.stack.AddProtocolAddress(guestNIC, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: address}, stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	g.stack.SetRouteTable([]tcpip.Route{
		{Destination: address.Subnet(), NIC: guestNIC},
		{Destination: header.IPv4EmptySubnet, Gateway: gatewayIP, NIC: guestNIC},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	out, in := g.Memory.Alloc(txSize, 16), g.Memory.Alloc(rxBuffers*rxSize, 16)
	go func() { g.pumpOut(ctx, card, out); done <- struct{}{} }()
	go func() { g.pumpIn(ctx, card, in); done <- struct{}{} }()
	t.Cleanup(func() {
		g.stack.Close()
		cancel()
		<-done
		<-done
	})
	return g
}

// pumpOut sends what the stack sends, by way of the memory at the address.
func (g *guest) pumpOut(ctx context.Context, card *channel.Endpoint, at memory.GPA) {
	q := g.Queues[1]
	for p := card.ReadContext(ctx); p != nil; p = card.ReadContext(ctx) {
		frame := append(make([]byte, vnetSize), p.ToView().AsSlice()...)
		p.DecRef()
		g.Memory.Set(at, frame)
		q.Publish(q.Chain(virtiotest.Buffer{GPA: at, Len: uint32(len(frame))}))
		q.Kick()
		q.Wait()
	}
}

// pumpIn gives what comes to the stack, in buffers at the address.
func (g *guest) pumpIn(ctx context.Context, card *channel.Endpoint, at memory.GPA) {
	q := g.Queues[0]
	buffers := make(map[uint16]virtiotest.Buffer)
	give := func(b virtiotest.Buffer) {
		head := q.Chain(b)
		buffers[head] = b
		q.Publish(head)
		q.Kick()
	}
	for i := range memory.GPA(rxBuffers) {
		give(virtiotest.Buffer{GPA: at + i*rxSize, Len: rxSize, Write: true})
	}
	take := func() []byte {
		for {
			q.SetUsedEvent(q.UsedIndex())
			if head, n, ok := q.Take(); ok {
				p := g.Memory.Get(buffers[head].GPA, int(n))
				give(buffers[head])
				return p
			}
			select {
			case <-q.Interrupted:
			case <-ctx.Done():
				return nil
			}
		}
	}
	for p := take(); p != nil; p = take() {
		for n := int(p[10]) | int(p[11])<<8; n > 1; n-- {
			p = append(p, take()...)
		}
		packet := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(p[vnetSize:])})
		card.InjectInbound(0, packet)
		packet.DecRef()
	}
}
