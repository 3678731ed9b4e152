package micro

import (
	"cmp"
	"encoding/binary"
	"fmt"
)

// NetMode is what a Net does.
type NetMode int

// The modes. The address of a packet that counts is that of Net.Local.
const (
	// Transmit sends packets to Net.Peer as fast as it can. Times in the
	// histogram are from the doorbell to when the device is done with a packet.
	Transmit NetMode = iota
	// Receive counts packets.
	Receive
	// Echo sends each packet back where it came from: with addresses swapped,
	// and with ports swapped if it is UDP or TCP. It answers ARP requests,
	// which do not count.
	Echo
)

// Net is a program that sends or receives packets through a virtio network
// device (§5.1): first Warmup of them, which do not count, then Packets.
//
// The result words have the packets and the bytes in them, from the Ethernet
// header on. The last time stamp is that of the last packet up to now.
type Net struct {
	Driver
	Mode NetMode
	// Local and Peer are the ends. Only Transmit has a use for Peer, and for
	// ports.
	Local, Peer Endpoint
	// Size is how many bytes a packet to transmit has, Ethernet header
	// included: 60 to 65549. It is UDP with the number of the packet (from 0,
	// a little-endian quad) as the first bytes of the payload.
	Size int
	// MSS, if not 0, makes packets to transmit TCP ones which the device cuts
	// into segments with a payload of MSS bytes (§5.1.6.2), and lets the device
	// receive such packets (§5.1.6.4).
	MSS int
	// Segment is how many bytes go into one descriptor of a packet to transmit;
	// 0 means all.
	Segment int
	// Depth is how many packets are in flight in either direction; 0 means 1.
	Depth int
	// BufferSize is the size of the buffers that receive, 0 one that fits.
	BufferSize int
	// Mergeable lets the device spread a packet over several buffers (not for
	// Echo).
	Mergeable bool
	// Packets is their number, or Forever.
	Packets, Warmup uint64
}

// Features of a network device (§5.1.3).
const (
	featureCSum      = 1 << 0
	featureGuestCSum = 1 << 1
	featureGuestTSO4 = 1 << 7
	featureHostTSO4  = 1 << 11
	featureMergeable = 1 << 15
)

// struct virtio_net_hdr (§5.1.6).
const (
	netHeaderFlags   = 0
	netHeaderGSOType = 1
	netHeaderLength  = 2
	netHeaderGSOSize = 4
	netHeaderStart   = 6
	netHeaderOffset  = 8
	netHeaderBuffers = 10
	netHeaderSize    = 12

	needsChecksum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	gsoTCPv4      = 1
)

const (
	receiveQueue  = 0
	transmitQueue = 1
	// plainBuffer holds a frame without offloads, largeBuffer one with them
	// (§5.1.6.3.1).
	plainBuffer = 1536
	largeBuffer = 65568
)

func (n *Net) check() error {
	switch {
	case n.Mode < Transmit || n.Mode > Echo:
		return fmt.Errorf("micro: no network mode %d", n.Mode)
	case n.Depth < 1 || n.Depth > maxDepth:
		return fmt.Errorf("micro: %d packets in flight: want 1 to %d", n.Depth, maxDepth)
	case n.Mode == Echo && n.Mergeable:
		return fmt.Errorf("micro: packets in several buffers cannot be echoed")
	case n.Mode == Transmit:
		if n.Segment < 0 {
			return fmt.Errorf("micro: segments of %d bytes", n.Segment)
		}
		return checkFrame(n.Size, n.MSS)
	case n.BufferSize < minFrame || n.BufferSize > 1<<20:
		return fmt.Errorf("micro: receive buffers of %d bytes: want %d to 1 MiB", n.BufferSize, minFrame)
	}
	return nil
}

func (n *Net) defaults() {
	n.Depth = cmp.Or(n.Depth, 1)
	if n.MSS > 0 && !n.Mergeable {
		n.BufferSize = cmp.Or(n.BufferSize, largeBuffer)
	}
	n.BufferSize = cmp.Or(n.BufferSize, plainBuffer)
}

// features are those that the mode needs.
func (n *Net) features() (required uint64) {
	if n.MSS > 0 && n.Mode != Receive {
		required |= featureCSum | featureHostTSO4
	}
	if n.MSS > 0 && n.Mode != Transmit {
		required |= featureGuestCSum | featureGuestTSO4
	}
	if n.Mergeable {
		required |= featureMergeable
	}
	return required
}

// ELF is the program.
func (n Net) ELF() ([]byte, error) {
	n.defaults()
	if err := n.check(); err != nil {
		return nil, err
	}
	p := &netProgram{driver: newDriver(n.Driver), Net: n}
	body := p.emitTransmit
	switch n.Mode {
	case Transmit:
		p.prepareTransmit()
	case Receive, Echo:
		p.prepareReceive()
		body = p.emitReceive
		if n.Mode == Echo {
			body = p.emitEcho
		}
	}
	p.begin(netDevice, n.features(), 0)
	run := p.routine(body)
	if n.Mode == Transmit {
		p.fillPackets()
	} else {
		p.giveBuffers()
	}
	if n.Warmup > 0 {
		p.MovImm(R14, n.Warmup)
		p.Call(run)
		p.restart()
	}
	p.stampTo(result(ResultFirstTSC))
	p.MovImm(R14, total(n.Packets))
	p.Call(run)
	p.stampTo(result(ResultLastTSC))
	return p.finish()
}

// putPacket writes the packet to transmit, behind its header.
func (n *Net) putPacket(m []byte) {
	if n.MSS == 0 {
		copy(m[netHeaderSize:], udpFrame(n.Local, n.Peer, n.Size))
		return
	}
	le := binary.LittleEndian
	m[netHeaderFlags], m[netHeaderGSOType] = needsChecksum, gsoTCPv4
	le.PutUint16(m[netHeaderLength:], tcpPayload)
	le.PutUint16(m[netHeaderGSOSize:], uint16(n.MSS))
	le.PutUint16(m[netHeaderStart:], frameTransport)
	le.PutUint16(m[netHeaderOffset:], tcpChecksum-frameTransport)
	copy(m[netHeaderSize:], tcpFrame(n.Local, n.Peer, n.Size))
}

// PacketHeaderSize is the size of struct virtio_net_hdr as the kernel's packet
// sockets have it: without num_buffers.
const PacketHeaderSize = netHeaderBuffers

// Packet is the packet that a Net transmits first, for whoever else wants to send
// such packets: behind a header of PacketHeaderSize bytes.
func (n Net) Packet() ([]byte, error) {
	if err := checkFrame(n.Size, n.MSS); err != nil {
		return nil, err
	}
	m := make([]byte, netHeaderSize+n.Size)
	n.putPacket(m)
	return append(m[:PacketHeaderSize], m[netHeaderSize:]...), nil
}

// netProgram is a Net in the making.
type netProgram struct {
	*driver
	Net
	out      *requestSet
	template uint64 // of a packet to transmit, header included
	stride   int    // between buffers

	rx, tx *queue // of Receive and Echo; buffer i is descriptor i in both
	merged Mem    // buffers that still belong to the packet at hand
}

// prepareTransmit makes the queues and the packet of Transmit.
func (p *netProgram) prepareTransmit() {
	size := netHeaderSize + p.Size
	p.stride = (size + 63) &^ 63
	segment := cmp.Or(p.Segment, size)
	p.newQueue(receiveQueue, 1) // stays empty
	p.out = p.newRequests(transmitQueue, p.Depth, (size+segment-1)/segment, 0)
	for i := range p.Depth {
		p.describe(p.out, i, split(BufferStart+uint64(i*p.stride), size, segment, false))
	}
	p.template = p.alloc(p.stride, 8)
	p.putPacket(p.bytes(p.template))
}

// fillPackets copies the template to each buffer.
func (p *netProgram) fillPackets() {
	p.MovImm(RDI, BufferStart)
	p.MovImm(RBX, uint64(p.Depth))
	next := p.Here()
	p.Lea(RSI, at(p.template))
	p.MovImm(RCX, uint64(p.stride/8))
	p.RepMovsq()
	p.Dec(RBX)
	p.Jcc(NotEqual, next)
}

// emitTransmit is the subroutine that sends R14 packets.
func (p *netProgram) emitTransmit() {
	payload := int32(netHeaderSize + udpPayload)
	if p.MSS > 0 {
		payload = netHeaderSize + tcpPayload
	}
	prepare := p.routine(func() {
		p.bufferAddress(RDI, RSI)
		p.Store(Quad, Mem{RDI, payload}, R9)
		p.send(p.out)
	})
	complete := p.routine(func() {
		p.receive(p.out)
		p.OpMemImm(Add, Quad, result(ResultCount), 1)
		p.OpMemImm(Add, Quad, result(resultBytes), int32(p.Size))
		p.Mov(RAX, R11)
		p.record()
	})
	p.pump(p.out, prepare, complete)
}

// bufferAddress sets r to the address of buffer i; it changes RAX.
func (p *netProgram) bufferAddress(r, i Reg) {
	p.MovImm(RAX, uint64(p.stride))
	p.Mov(r, i)
	p.Imul(r, RAX)
	p.OpImm(Add, r, BufferStart)
}
