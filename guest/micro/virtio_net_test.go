package micro

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	localEnd = Endpoint{MAC: [6]byte{0x52, 0x54, 0, 0x12, 0x34, 0x96}, IP: [4]byte{10, 0, 2, 15}, Port: 1001}
	peerEnd  = Endpoint{MAC: [6]byte{0x52, 0x54, 0, 0x98, 0x76, 0x54}, IP: [4]byte{10, 0, 2, 2}, Port: 2002}
)

// socketNet is the options for a network device on a socket that is QEMU's
// descriptor 4.
var socketNet = []string{"-netdev", "socket,id=net,fd=4", "-device", "virtio-net-pci,netdev=net,mac=52:54:00:12:34:96"}

// wire makes a pair of sockets on which a datagram is a frame: one for QEMU, one
// for the test.
func wire(t *testing.T) (qemu *os.File, end net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	qemu = os.NewFile(uintptr(fds[0]), "qemu's end")
	f := os.NewFile(uintptr(fds[1]), "test's end")
	defer f.Close()
	if end, err = net.FileConn(f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end.Close() })
	return qemu, end
}

func TestNetTransmitUnderQEMU(t *testing.T) {
	for _, test := range []struct {
		name string
		net  Net
	}{
		{"depth 1", Net{Size: 64, Packets: 50, Warmup: 3}},
		{"depth 32, event index", Net{Driver: Driver{EventIdx: true}, Size: 1514, Packets: 500, Depth: 32}},
		{"segments", Net{Size: 1000, Segment: 300, Packets: 100, Depth: 8}},
		{"indirect segments", Net{Driver: Driver{Indirect: true}, Size: 1514, Segment: 100, Packets: 100, Depth: 8}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, m := range machines {
				t.Run(m.name, func(t *testing.T) { runTransmit(t, m, test.net) })
			}
		})
	}
}

func runTransmit(t *testing.T, m qemuMachine, n Net) {
	n.Local, n.Peer, n.Stop = localEnd, peerEnd, AnyStop()
	socket, end := wire(t)
	g := m.start(t, program(t)(n.ELF()), socket, socketNet...)
	want := udpFrame(localEnd, peerEnd, n.Size)
	got := make([]byte, maxFrame)
	for i := range n.Warmup + n.Packets {
		size, err := end.Read(got)
		if err != nil {
			t.Fatal(err)
		}
		number := i
		if i >= n.Warmup {
			number -= n.Warmup
		}
		binary.LittleEndian.PutUint64(want[udpPayload:], number)
		if !bytes.Equal(got[:size], want) {
			t.Fatalf("packet %d: got % x, want % x", i, got[:size], want)
		}
	}
	r := g.wait()
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	if r.Count != n.Packets || r.Bytes != n.Packets*uint64(n.Size) || r.Histogram.Count() != n.Packets || r.Kicks == 0 {
		t.Errorf("%d packets, %d bytes, %d times, %d kicks", r.Count, r.Bytes, r.Histogram.Count(), r.Kicks)
	}
}

func TestNetReceiveUnderQEMU(t *testing.T) {
	for _, test := range []struct {
		name string
		net  Net
		size int
	}{
		{"depth 1", Net{}, 64},
		{"depth 64", Net{Driver: Driver{EventIdx: true, Indirect: true}, Depth: 64}, 1514},
		{"merged buffers", Net{Depth: 64, Mergeable: true, BufferSize: 256}, 1514},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, m := range machines {
				t.Run(m.name, func(t *testing.T) {
					n := test.net
					n.Mode, n.Local, n.Packets, n.Warmup, n.Stop = Receive, localEnd, 300, 5, AnyStop()
					socket, end := wire(t)
					g := m.start(t, program(t)(n.ELF()), socket, socketNet...)
					g.ready()
					ours, other := udpFrame(peerEnd, localEnd, test.size), udpFrame(localEnd, peerEnd, test.size)
					// What is not for the guest does not count.
					for range n.Packets + n.Warmup {
						for _, f := range [][]byte{ours, other} {
							if _, err := end.Write(f); err != nil {
								t.Fatal(err)
							}
						}
					}
					r := g.wait()
					if err := r.Err(); err != nil {
						t.Fatal(err)
					}
					if r.Count != n.Packets || r.Bytes < n.Packets*uint64(test.size) || r.Bytes > (n.Packets+1)*uint64(test.size) {
						t.Errorf("%d packets, %d bytes, want %d packets of %d", r.Count, r.Bytes, n.Packets, test.size)
					}
				})
			}
		})
	}
}

func TestNetEchoUnderQEMU(t *testing.T) {
	for _, m := range machines {
		t.Run(m.name, func(t *testing.T) {
			const packets = 100
			n := Net{Mode: Echo, Local: localEnd, Packets: packets, Depth: 16, Driver: Driver{EventIdx: true, Stop: AnyStop()}}
			socket, end := wire(t)
			g := m.start(t, program(t)(n.ELF()), socket, socketNet...)
			g.ready()
			exchange(t, end, arpPacket(1, peerEnd, Endpoint{IP: localEnd.IP}), arpPacket(2, localEnd, peerEnd))
			bytes := 0
			for i := range packets {
				size := minFrame + 14*i
				ask := udpFrame(peerEnd, localEnd, size)
				answer := udpFrame(localEnd, peerEnd, size)
				ask[size-1], answer[size-1] = byte(i), byte(i)
				exchange(t, end, ask, answer)
				bytes += size
			}
			r := g.wait()
			if err := r.Err(); err != nil || r.Count != packets || r.Bytes != uint64(bytes) {
				t.Errorf("%v, %d packets, %d bytes, want %d, %d", err, r.Count, r.Bytes, packets, bytes)
			}
		})
	}
}

// exchange sends a packet and checks what comes back.
func exchange(t *testing.T, end net.Conn, ask, answer []byte) {
	t.Helper()
	if _, err := end.Write(ask); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, maxFrame)
	n, err := end.Read(got)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:n], answer) {
		t.Fatalf("sent % x\ngot  % x\nwant % x", ask, got[:n], answer)
	}
}

// arpPacket is a request (1) or reply (2).
func arpPacket(operation uint16, from, to Endpoint) []byte {
	f := make([]byte, minFrame)
	copy(f[frameDestination:], to.MAC[:])
	if operation == 1 {
		copy(f[frameDestination:], "\xff\xff\xff\xff\xff\xff")
	}
	copy(f[frameSource:], from.MAC[:])
	be := binary.BigEndian
	be.PutUint16(f[frameType:], typeARP)
	copy(f[frameIP:], []byte{0, 1, 8, 0, 6, 4}) // Ethernet, IPv4, sizes
	be.PutUint16(f[arpOperation:], operation)
	copy(f[arpSender:], append(from.MAC[:], from.IP[:]...))
	copy(f[arpTarget:], append(to.MAC[:], to.IP[:]...))
	return f
}

func TestNetMistakes(t *testing.T) {
	for _, test := range []struct {
		net  Net
		want string
	}{
		{Net{}, "frames of 0 bytes"},
		{Net{Size: 65550}, "frames of 65550"},
		{Net{Size: 1000, MSS: 1000}, "at least two"},
		{Net{Size: 1000, Segment: -1}, "segments of -1"},
		{Net{Size: 1000, Depth: 1000}, "in flight"},
		{Net{Mode: 3}, "mode 3"},
		{Net{Mode: Echo, Mergeable: true}, "cannot be echoed"},
		{Net{Mode: Receive, BufferSize: 12}, "receive buffers"},
	} {
		if _, err := test.net.ELF(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: error %v, want %q in it", test.net, err, test.want)
		}
	}
}
