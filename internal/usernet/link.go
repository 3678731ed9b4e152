package usernet

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/godwit-vmm/godwit/devices/virtio/net/user"
)

// The header in front of each frame, struct virtio_net_hdr_v1 (virtio 1.2
// §5.1.6).
const (
	vnetHeader    = 12
	flagNeedsCsum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	gsoTCPv4      = 1 // VIRTIO_NET_HDR_GSO_TCPV4
)

const (
	ethernetHeader = header.EthernetMinimumSize
	// maxFrame is the largest frame with its header.
	maxFrame = vnetHeader + ethernetHeader + header.MaxIPPacketSize
	// maxSegment is the data of the largest TCP segment, with room for the
	// largest headers.
	maxSegment = header.MaxIPPacketSize - header.IPv4MaximumHeaderSize - header.TCPHeaderMaximumSize
)

// link is the stack's network card: a socket on which each message is a frame
// behind its header.
//
// The stack leaves checksums and the cutting of large segments to the guest, if
// that can do it, and does not check what the guest has sent: nothing in between
// can damage it.
type link struct {
	fd  int
	mtu uint32

	offloads   atomic.Uint32 // of the guest
	dispatcher atomic.Pointer[stack.NetworkDispatcher]

	mu   sync.Mutex // one frame is written at a time
	iovs []unix.Iovec
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

// receive gives the guest's frames to the stack until the socket is closed.
func (l *link) receive() error {
	p := make([]byte, maxFrame)
	for {
		n, err := unix.Read(l.fd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ECONNRESET || err == nil && n == 0:
			return nil
		case err != nil:
			return fmt.Errorf("receive a frame: %w", err)
		case n == user.OffloadsSize:
			l.offloads.Store(binary.LittleEndian.Uint32(p))
		case n >= vnetHeader+ethernetHeader:
			l.deliver(p[vnetHeader:n])
		}
	}
}

// deliver gives a frame to the stack, if it is for the gateway.
func (l *link) deliver(frame []byte) {
	eth := header.Ethernet(frame)
	if to := eth.DestinationAddress(); to != gatewayMAC && to != header.EthernetBroadcastAddress {
		return
	}
	dispatcher := l.dispatcher.Load()
	if dispatcher == nil {
		return
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame[ethernetHeader:])})
	(*dispatcher).DeliverNetworkPacket(eth.Type(), p)
	p.DecRef()
}

// WritePackets sends frames to the guest. It waits for room, so that nothing is
// lost on the way.
func (l *link) WritePackets(packets stack.PacketBufferList) (int, tcpip.Error) {
	for i, p := range packets.AsSlice() {
		if err := l.write(p); err != nil {
			return i, err
		}
	}
	return packets.Len(), nil
}

func (l *link) write(p *stack.PacketBuffer) tcpip.Error {
	if l.spoofed(p) {
		return nil
	}
	from := l.LinkAddress()
	if p.EgressRoute.LocalLinkAddress != "" {
		from = p.EgressRoute.LocalLinkAddress
	}
	header.Ethernet(p.LinkHeader().Push(ethernetHeader)).Encode(&header.EthernetFields{
		Type: p.NetworkProtocolNumber, SrcAddr: from, DstAddr: p.EgressRoute.RemoteLinkAddress,
	})
	h, ok := l.header(p)
	if !ok {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.iovs = appendVector(l.iovs[:0], h[:])
	for _, piece := range p.AsSlices() {
		l.iovs = appendVector(l.iovs, piece)
	}
	if err := writev(l.fd, l.iovs); err != nil {
		return &tcpip.ErrClosedForSend{}
	}
	return nil
}

// spoofed tells whether a packet is an ARP reply for an address that is not the
// gateway's. The stack answers for all addresses, also for that which a guest
// wants to take and asks about.
func (l *link) spoofed(p *stack.PacketBuffer) bool {
	if p.NetworkProtocolNumber != header.ARPProtocolNumber {
		return false
	}
	h := header.ARP(p.NetworkHeader().Slice())
	if !h.IsValid() || h.Op() != header.ARPReply {
		return false
	}
	from := tcpip.AddrFrom4Slice(h.ProtocolAddressSender())
	return from != gatewayIP && from != hostIP
}

// header is what goes in front of a frame. It returns false if the guest can do
// nothing with the frame, because its driver has changed its mind.
func (l *link) header(p *stack.PacketBuffer) (h [vnetHeader]byte, ok bool) {
	gso := p.GSOOptions
	if gso.Type == stack.GSONone || !gso.NeedsCsum {
		return h, true
	}
	need := uint32(unix.TUN_F_CSUM)
	le := binary.LittleEndian
	h[0] = flagNeedsCsum
	if p.Data().Size() > int(gso.MSS) {
		need |= unix.TUN_F_TSO4
		h[1] = gsoTCPv4
		le.PutUint16(h[2:], uint16(p.HeaderSize()))
		le.PutUint16(h[4:], gso.MSS)
	}
	le.PutUint16(h[6:], ethernetHeader+gso.L3HdrLen)
	le.PutUint16(h[8:], gso.CsumOffset)
	return h, l.offloads.Load()&need == need
}

// SupportedGSO is host GSO, the stack's word for leaving segments to the next,
// if the guest takes them.
func (l *link) SupportedGSO() stack.SupportedGSO {
	if l.offloads.Load()&user.Offloads == user.Offloads {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

// GSOMaxSize is the data of the largest segment.
func (l *link) GSOMaxSize() uint32 { return maxSegment }

// Attach is called by the stack.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&d)
}

// IsAttached tells whether the stack takes frames.
func (l *link) IsAttached() bool { return l.dispatcher.Load() != nil }

// MTU is that of the guest's card in bytes.
func (l *link) MTU() uint32 { return l.mtu }

// SetMTU does nothing: the MTU does not change.
func (l *link) SetMTU(uint32) {}

// MaxHeaderLength is the room in bytes that the stack leaves for AddHeader.
func (l *link) MaxHeaderLength() uint16 { return ethernetHeader }

// LinkAddress is the MAC address of the gateway.
func (l *link) LinkAddress() tcpip.LinkAddress { return gatewayMAC }

// SetLinkAddress does nothing: the address does not change.
func (l *link) SetLinkAddress(tcpip.LinkAddress) {}

// ARPHardwareType is Ethernet.
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// AddHeader does nothing: the header is made when the frame is sent.
func (l *link) AddHeader(*stack.PacketBuffer) {}

// ParseHeader does nothing: the header is taken off when the frame comes in.
func (l *link) ParseHeader(*stack.PacketBuffer) bool { return true }

// Wait returns at once: whoever made the link waits for its goroutine.
func (l *link) Wait() {}

// Close does nothing: the link ends with its socket.
func (l *link) Close() {}

// SetOnCloseAction does nothing, because Close does.
func (l *link) SetOnCloseAction(func()) {}

// Capabilities are what the link does for the stack.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired | stack.CapabilityRXChecksumOffload
}
