package micro

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Endpoint is one end of what goes over a network.
type Endpoint struct {
	MAC  [6]byte
	IP   [4]byte
	Port uint16
}

// Offsets in an Ethernet frame with an IPv4 packet without options, or with ARP
// (RFC 791, RFC 768, RFC 826).
const (
	frameDestination = 0
	frameSource      = 6
	frameType        = 12
	frameIP          = 14
	ipVersion        = frameIP
	ipLength         = frameIP + 2
	ipTTL            = frameIP + 8
	ipProtocol       = frameIP + 9
	ipChecksum       = frameIP + 10
	ipSource         = frameIP + 12
	ipDestination    = frameIP + 16
	frameTransport   = frameIP + 20
	udpPayload       = frameTransport + 8
	tcpChecksum      = frameTransport + 16
	tcpPayload       = frameTransport + 20

	arpOperation = frameIP + 6
	arpSender    = frameIP + 8 // MAC, then IP
	arpTarget    = frameIP + 18

	typeIP  = 0x0800
	typeARP = 0x0806

	protocolTCP = 6
	protocolUDP = 17

	ipv4NoOptions = 0x45

	minFrame = 60
	maxFrame = frameIP + math.MaxUint16
)

// udpFrame is a frame of n bytes with a UDP datagram without checksum, whose
// payload is zero.
func udpFrame(from, to Endpoint, n int) []byte {
	f := ipFrame(from, to, n, protocolUDP)
	binary.BigEndian.PutUint16(f[frameTransport+4:], uint16(n-frameTransport))
	return f
}

// tcpFrame is a frame of n bytes with a TCP segment, as large as it may be with
// segmentation offload: the checksum field has the sum of the pseudo header.
func tcpFrame(from, to Endpoint, n int) []byte {
	const acknowledge, headerWords = 1 << 4, 5
	f := ipFrame(from, to, n, protocolTCP)
	f[frameTransport+12] = headerWords << 4
	f[frameTransport+13] = acknowledge
	binary.BigEndian.PutUint16(f[frameTransport+14:], math.MaxUint16) // window
	pseudo := onesSum(f[ipSource:frameTransport]) + protocolTCP + uint32(n-frameTransport)
	binary.BigEndian.PutUint16(f[tcpChecksum:], fold(pseudo))
	return f
}

func ipFrame(from, to Endpoint, n int, protocol byte) []byte {
	const ttl = 64
	f := make([]byte, n)
	copy(f[frameDestination:], to.MAC[:])
	copy(f[frameSource:], from.MAC[:])
	be := binary.BigEndian
	be.PutUint16(f[frameType:], typeIP)
	f[ipVersion] = ipv4NoOptions
	be.PutUint16(f[ipLength:], uint16(n-frameIP))
	f[ipTTL] = ttl
	f[ipProtocol] = protocol
	copy(f[ipSource:], from.IP[:])
	copy(f[ipDestination:], to.IP[:])
	be.PutUint16(f[ipChecksum:], ^fold(onesSum(f[frameIP:frameTransport])))
	be.PutUint16(f[frameTransport:], from.Port)
	be.PutUint16(f[frameTransport+2:], to.Port)
	return f
}

// onesSum adds up 16-bit words for an Internet checksum (RFC 1071); fold brings
// the sum to 16 bits.
func onesSum(p []byte) (sum uint32) {
	for i := 0; i+1 < len(p); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > math.MaxUint16 {
		sum = sum>>16 + sum&math.MaxUint16
	}
	return uint16(sum)
}

// little is a 16-bit number in network order as a load reads it.
func little(v uint16) int32 { return int32(v>>8 | v<<8) }

func checkFrame(n, mss int) error {
	if n < minFrame || n > maxFrame {
		return fmt.Errorf("micro: frames of %d bytes: want %d to %d", n, minFrame, maxFrame)
	}
	if mss < 0 || mss > math.MaxUint16 || mss > 0 && n <= tcpPayload+mss {
		return fmt.Errorf("micro: segments of %d bytes in frames of %d: want at least two", mss, n)
	}
	return nil
}
