package lab

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
)

// Network is an Ethernet switch that hosts are plugged into. It runs in this
// process, on QEMU's socket protocol: frames with a 32-bit big-endian length in
// front.
type Network struct {
	mu    sync.Mutex
	ports map[*port]struct{}
	// stations says behind which port a MAC address was seen last.
	stations map[mac]*port
}

type mac [6]byte

type port struct {
	line *os.File
	// out holds frames on their way to the host. What does not fit is
	// dropped, as a switch does.
	out chan []byte
}

const (
	// maxFrame is the largest frame that is passed on: QEMU's own limit.
	maxFrame = 68 << 10
	// maxStations bounds the table of addresses that a host can fill.
	maxStations = 1024
	queueFrames = 512
)

// NewNetwork makes a network without hosts.
func NewNetwork() *Network {
	return &Network{ports: make(map[*port]struct{}), stations: make(map[mac]*port)}
}

// plug adds a port and gives the host's end of it. The port goes away when
// that end is closed.
func (n *Network) plug() (*os.File, error) {
	near, far, err := socketPair()
	if err != nil {
		return nil, err
	}
	p := &port{line: near, out: make(chan []byte, queueFrames)}
	n.mu.Lock()
	n.ports[p] = struct{}{}
	n.mu.Unlock()
	go p.transmit()
	go n.receive(p)
	return far, nil
}

// receive takes in the frames of one host.
func (n *Network) receive(p *port) {
	r := bufio.NewReaderSize(p.line, maxFrame)
	for {
		frame, err := readEthernet(r)
		if err != nil {
			break // the host has gone, or talks nonsense
		}
		n.forward(p, frame)
	}
	n.mu.Lock()
	delete(n.ports, p)
	for address, at := range n.stations {
		if at == p {
			delete(n.stations, address)
		}
	}
	close(p.out)
	n.mu.Unlock()
}

// readEthernet reads a frame, with its length in front.
func readEthernet(r io.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(length[:])
	if size > maxFrame {
		return nil, errors.New("frame too large")
	}
	frame := make([]byte, 4+size)
	copy(frame, length[:])
	_, err := io.ReadFull(r, frame[4:])
	return frame, err
}

// forward hands a frame to the host it is for, or to all others.
func (n *Network) forward(from *port, frame []byte) {
	const addresses = 4 + 12
	if len(frame) < addresses {
		return
	}
	destination, source := mac(frame[4:10]), mac(frame[10:16])
	n.mu.Lock()
	defer n.mu.Unlock()
	if multicast := source[0]&1 != 0; !multicast && (len(n.stations) < maxStations || n.stations[source] != nil) {
		n.stations[source] = from
	}
	if to := n.stations[destination]; to != nil {
		if to != from {
			to.send(frame)
		}
		return
	}
	for p := range n.ports {
		if p != from {
			p.send(frame)
		}
	}
}

func (p *port) send(frame []byte) {
	select {
	case p.out <- frame:
	default:
	}
}

func (p *port) transmit() {
	for frame := range p.out {
		if _, err := p.line.Write(frame); err != nil {
			break
		}
	}
	p.line.Close() // which also ends receive
	for range p.out {
	}
}

// socketPair gives two connected stream sockets.
func socketPair() (near, far *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	// Non-blocking here, so that Close ends a Read; QEMU sets its end as
	// it likes.
	if err := syscall.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(err, syscall.Close(fds[0]), syscall.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "lab"), os.NewFile(uintptr(fds[1]), "lab"), nil
}
