package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// dhcpRetry is how long a server may take to answer the first question;
	// it doubles with each that stays unanswered, up to dhcpRetryMax (RFC
	// 2131 §4.1).
	dhcpRetry    = time.Second
	dhcpRetryMax = 64 * time.Second
	// minRenewal keeps a server with very short leases from keeping the
	// guest busy.
	minRenewal = 10 * time.Second
)

// dhcpClient gets an interface its address (RFC 2131).
type dhcpClient struct {
	name   string
	mac    [6]byte
	socket int
}

// newDHCPClient makes a client for an interface that is up.
func newDHCPClient(name string, mac [6]byte) (*dhcpClient, error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: %w", name, err)
	}
	// Without an address, packets find their way in and out by the
	// interface; so there is one socket for each.
	err = errors.Join(
		unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
		unix.SetsockoptString(socket, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, name),
		unix.Bind(socket, &unix.SockaddrInet4{Port: dhcpClientPort}),
	)
	if err != nil {
		unix.Close(socket)
		return nil, fmt.Errorf("DHCP on %s: %w", name, err)
	}
	return &dhcpClient{name: name, mac: mac, socket: socket}, nil
}

// run keeps the interface's address for as long as the system runs. It hands
// each lease to use, and ends only on an error of the socket.
func (c *dhcpClient) run(use func(lease)) error {
	defer unix.Close(c.socket)
	for {
		l, err := c.acquire()
		for err == nil {
			use(l)
			time.Sleep(max(l.duration/2, minRenewal))
			var renewed bool
			if l, renewed, err = c.renew(l); !renewed {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("DHCP on %s: %w", c.name, err)
		}
	}
}

// acquire asks for a lease until it has one.
func (c *dhcpClient) acquire() (lease, error) {
	for retry := dhcpRetry; ; retry = min(2*retry, dhcpRetryMax) {
		id := rand.Uint32()
		offer, err := c.ask(dhcpRequest{kind: dhcpDiscover, id: id}, retry)
		if err == nil && offer.kind == dhcpOffer {
			var answer dhcpReply
			answer, err = c.ask(dhcpRequest{kind: dhcpRequestKind, id: id, wanted: offer.address.Addr(), server: offer.server}, retry)
			if err == nil && answer.kind == dhcpAck {
				return answer.lease, nil
			}
		}
		if err != nil && !errors.Is(err, errNoAnswer) {
			return lease{}, err
		}
	}
}

// renew asks for more time, of any server, until the lease is over.
func (c *dhcpClient) renew(l lease) (_ lease, renewed bool, _ error) {
	end := time.Now().Add(l.duration / 2)
	for retry := dhcpRetry; time.Now().Before(end); retry = min(2*retry, dhcpRetryMax) {
		answer, err := c.ask(dhcpRequest{kind: dhcpRequestKind, id: rand.Uint32(), client: l.address.Addr()}, retry)
		switch {
		case err == nil && answer.kind == dhcpAck:
			return answer.lease, true, nil
		case err == nil && answer.kind == dhcpNak:
			return lease{}, false, nil
		case err != nil && !errors.Is(err, errNoAnswer):
			return lease{}, false, err
		}
	}
	return lease{}, false, nil
}

var errNoAnswer = errors.New("no answer")

// ask sends a request and waits for an answer of the kind that it wants.
func (c *dhcpClient) ask(r dhcpRequest, timeout time.Duration) (dhcpReply, error) {
	deadline := time.Now().Add(timeout)
	to := &unix.SockaddrInet4{Port: dhcpServerPort, Addr: [4]byte{255, 255, 255, 255}}
	if err := unix.Sendto(c.socket, r.marshal(c.mac), 0, to); err != nil && !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.ENETDOWN) {
		return dhcpReply{}, fmt.Errorf("send: %w", err)
	}
	packet := make([]byte, 2048)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return dhcpReply{}, errNoAnswer
		}
		if err := pollFor(c.socket, left); err != nil {
			return dhcpReply{}, err
		}
		n, _, err := unix.Recvfrom(c.socket, packet, 0)
		if err != nil {
			continue // the deadline ends it
		}
		reply, err := parseReply(packet[:n], r.id, c.mac)
		if err == nil && r.accepts(reply) {
			return reply, nil
		}
	}
}

// Message types (RFC 2132 §9.6).
const (
	dhcpDiscover    = 1
	dhcpOffer       = 2
	dhcpRequestKind = 3
	dhcpAck         = 5
	dhcpNak         = 6
)

// Ports, and the layout of a message (RFC 2131 §2).
const (
	dhcpServerPort = 67
	dhcpClientPort = 68

	dhcpIDAt      = 4
	dhcpClientAt  = 12 // the client's address, if it has one
	dhcpYoursAt   = 16 // the address for the client
	dhcpMACAt     = 28
	dhcpOptionsAt = 240 // behind the magic cookie
	dhcpMagic     = 0x63825363
)

// Options (RFC 2132).
const (
	dhcpOptMask   = 1
	dhcpOptRouter = 3
	dhcpOptDNS    = 6
	dhcpOptDomain = 15
	dhcpOptMTU    = 26
	dhcpOptWanted = 50
	dhcpOptLease  = 51
	dhcpOptKind   = 53
	dhcpOptServer = 54
	dhcpOptList   = 55
	dhcpOptEnd    = 255
)

// lease is what a server grants.
type lease struct {
	address  netip.Prefix
	router   netip.Addr // not valid if there is none
	dns      []netip.Addr
	domain   string
	mtu      uint16 // 0 if the server does not say
	duration time.Duration
}

// dhcpRequest is a message to servers.
type dhcpRequest struct {
	kind   byte
	id     uint32
	client netip.Addr // the client's address, if it has one
	wanted netip.Addr // the address that it would like to have
	server netip.Addr // which server is meant, of several
}

// accepts tells whether a reply answers the request.
func (r dhcpRequest) accepts(reply dhcpReply) bool {
	if r.kind == dhcpDiscover {
		return reply.kind == dhcpOffer
	}
	return (reply.kind == dhcpAck || reply.kind == dhcpNak) && (!r.server.IsValid() || reply.server == r.server)
}

func (r dhcpRequest) marshal(mac [6]byte) []byte {
	be := binary.BigEndian
	b := make([]byte, dhcpOptionsAt, 300)
	// A request, on Ethernet, with hardware addresses of 6 bytes.
	b[0], b[1], b[2] = 1, 1, 6
	be.PutUint32(b[dhcpIDAt:], r.id)
	// Answers are broadcast: without an address, the kernel would not take
	// others.
	be.PutUint16(b[10:], 0x8000)
	if r.client.IsValid() {
		copy(b[dhcpClientAt:], r.client.AsSlice())
	}
	copy(b[dhcpMACAt:], mac[:])
	be.PutUint32(b[dhcpOptionsAt-4:], dhcpMagic)
	b = append(b, dhcpOptKind, 1, r.kind)
	if r.wanted.IsValid() {
		b = append(append(b, dhcpOptWanted, 4), r.wanted.AsSlice()...)
	}
	if r.server.IsValid() {
		b = append(append(b, dhcpOptServer, 4), r.server.AsSlice()...)
	}
	b = append(b, dhcpOptList, 6, dhcpOptMask, dhcpOptRouter, dhcpOptDNS, dhcpOptDomain, dhcpOptMTU, dhcpOptLease, dhcpOptEnd)
	// Some servers want the size that BOOTP messages had.
	return append(b, make([]byte, max(0, 300-len(b)))...)
}

// dhcpReply is a message of a server.
type dhcpReply struct {
	lease
	kind   byte
	server netip.Addr
}

var errNotMine = errors.New("not an answer to this client")

// parseReply reads a message of a server to this client.
func parseReply(b []byte, id uint32, mac [6]byte) (dhcpReply, error) {
	be := binary.BigEndian
	if len(b) < dhcpOptionsAt || b[0] != 2 || be.Uint32(b[dhcpIDAt:]) != id || [6]byte(b[dhcpMACAt:]) != mac ||
		be.Uint32(b[dhcpOptionsAt-4:]) != dhcpMagic {
		return dhcpReply{}, errNotMine
	}
	r := dhcpReply{lease: lease{duration: time.Hour}}
	address, bits := netip.AddrFrom4([4]byte(b[dhcpYoursAt:])), 24
	for b = b[dhcpOptionsAt:]; len(b) >= 2 && b[0] != dhcpOptEnd; {
		if b[0] == 0 {
			b = b[1:] // padding
			continue
		}
		option, size := b[0], int(b[1])
		if len(b) < 2+size {
			break
		}
		value := b[2 : 2+size]
		b = b[2+size:]
		switch {
		case option == dhcpOptKind && size == 1:
			r.kind = value[0]
		case option == dhcpOptMask && size == 4:
			bits = maskBits(be.Uint32(value))
		case option == dhcpOptRouter && size >= 4:
			r.router = netip.AddrFrom4([4]byte(value))
		case option == dhcpOptDNS:
			for ; len(value) >= 4; value = value[4:] {
				r.dns = append(r.dns, netip.AddrFrom4([4]byte(value)))
			}
		case option == dhcpOptDomain:
			r.domain = domainName(value)
		case option == dhcpOptMTU && size == 2:
			r.mtu = be.Uint16(value)
		case option == dhcpOptLease && size == 4:
			r.duration = time.Duration(be.Uint32(value)) * time.Second
		case option == dhcpOptServer && size == 4:
			r.server = netip.AddrFrom4([4]byte(value))
		}
	}
	r.address = netip.PrefixFrom(address, bits)
	return r, nil
}

// maskBits is the length of a network mask.
func maskBits(mask uint32) int {
	bits := 0
	for ; mask&(1<<31) != 0; mask <<= 1 {
		bits++
	}
	return bits
}

// domainName is a name that can stand in resolv.conf, or nothing.
func domainName(b []byte) string {
	for _, c := range b {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_') {
			return ""
		}
	}
	return string(b)
}
