package micro

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
	vnet "github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/devices/virtio/net/tap"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"golang.org/x/sys/unix"
)

// newTap makes a tap interface in a network of the test's own, and a socket that
// gets and sends what goes through it, behind a struct virtio_net_hdr. The
// calling goroutine stays in that network.
func newTap(t *testing.T) (*tap.Tap, int) {
	t.Helper()
	runtime.LockOSThread() // until the goroutine ends, and the thread with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		testenv.Lacks(t, "a network of its own takes privileges: %v", err)
	}
	card, err := tap.Open(tap.Config{})
	if err != nil {
		if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
			testenv.Lacks(t, "%v", err)
		}
		t.Fatal(err)
	}
	link, err := net.InterfaceByName(card.Name())
	if err != nil {
		t.Fatal(err)
	}
	const all = 3 // ETH_P_ALL
	protocol := uint16(little(all))
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(protocol))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(socket) })
	const packetVnetHdr = 15
	for _, err := range []error{
		unix.SetsockoptInt(socket, unix.SOL_PACKET, packetVnetHdr, 1),
		unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20),
		unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}),
		unix.Bind(socket, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Index}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return card, socket
}

// onTap runs the test with QEMU and with godwit, each on a tap interface of its
// own: start starts a program, wait waits for its end.
func onTap(t *testing.T, program []byte, test func(t *testing.T, socket int, ready func(), wait func() Result)) {
	for _, m := range []qemuMachine{q35, microvmKVM} {
		t.Run(m.name, func(t *testing.T) {
			m.needs(t)
			card, socket := newTap(t)
			fd, err := unix.Dup(card.Descriptors()[0])
			if err != nil {
				t.Fatal(err)
			}
			// While it is open, the interface stays, and what the socket has
			// got with it.
			t.Cleanup(func() { card.Close() })
			g := m.start(t, program, os.NewFile(uintptr(fd), card.Name()),
				"-netdev", "tap,id=net,fd=4,vhost=off", "-device", "virtio-net-pci,netdev=net,mac=52:54:00:12:34:96")
			test(t, socket, g.ready, g.wait)
		})
	}
	t.Run("godwit", func(t *testing.T) {
		card, socket := newTap(t)
		d, err := vnet.New(vnet.Config{MAC: localEnd.MAC, Backend: card})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		g := newVirtioGuest(t, program, virtio.Device(d))
		done := make(chan Result, 1)
		go func() {
			defer close(done)
			done <- g.run()
		}()
		ready := func() {
			for deadline := time.Now().Add(time.Minute); g.result().Kicks == 0; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the guest did not set its queues up")
				}
			}
		}
		test(t, socket, ready, func() Result { return <-done })
	})
}

func TestNetTransmitOnTap(t *testing.T) {
	for _, n := range []Net{
		{Size: 64, Packets: 1000, Depth: 32},
		{Size: 65000, MSS: 1448, Packets: 200, Depth: 4},
		{Size: 65549, MSS: 1448, Segment: 16384, Packets: 200, Depth: 8, Driver: Driver{EventIdx: true}},
	} {
		t.Run(fmt.Sprint(n.Size), func(t *testing.T) {
			n.Local, n.Peer, n.Stop = localEnd, peerEnd, AnyStop()
			want, payload := udpFrame(localEnd, peerEnd, n.Size), udpPayload
			if n.MSS > 0 {
				want, payload = tcpFrame(localEnd, peerEnd, n.Size), tcpPayload
			}
			onTap(t, program(t)(n.ELF()), func(t *testing.T, socket int, _ func(), wait func() Result) {
				got := make([]byte, PacketHeaderSize+maxFrame)
				for i := uint64(0); i < n.Packets; {
					size, err := unix.Read(socket, got)
					if err != nil {
						t.Fatalf("packet %d: %v", i, err)
					}
					frame := got[PacketHeaderSize:size]
					if !bytes.HasPrefix(frame[frameSource:], localEnd.MAC[:]) {
						continue // the host's own
					}
					binary.LittleEndian.PutUint64(want[payload:], i)
					if !bytes.Equal(frame, want) {
						t.Fatalf("packet %d: %d bytes % x..., want %d bytes % x...", i, len(frame), frame[:64], len(want), want[:64])
					}
					if gso := binary.LittleEndian.Uint16(got[netHeaderGSOSize:]); gso != uint16(n.MSS) {
						t.Fatalf("packet %d in segments of %d bytes, want %d", i, gso, n.MSS)
					}
					i++
				}
				r := wait()
				if err := r.Err(); err != nil || r.Count != n.Packets || r.Bytes != n.Packets*uint64(n.Size) {
					t.Errorf("%v, %d packets, %d bytes", err, r.Count, r.Bytes)
				}
			})
		})
	}
}

func TestNetReceiveOnTap(t *testing.T) {
	const mss = 1448
	for _, test := range []struct {
		name string
		net  Net
		size int
	}{
		{"small", Net{Depth: 32}, 64},
		{"large buffers", Net{MSS: mss, Depth: 8}, 65000},
		{"merged buffers", Net{MSS: mss, Mergeable: true, BufferSize: 4096, Depth: 64}, 65000},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := test.net
			n.Mode, n.Local, n.Packets, n.Stop = Receive, localEnd, 100, AnyStop()
			// The first doorbell says that the guest is ready; a device
			// that polls would do without.
			n.AlwaysKick = true
			frame := program(t)(Net{Local: peerEnd, Peer: localEnd, Size: test.size, MSS: n.MSS}.Packet())
			onTap(t, program(t)(n.ELF()), func(t *testing.T, socket int, ready func(), wait func() Result) {
				ready()
				// Without a queue behind it, the interface may lose some.
				stop, ended := make(chan struct{}), make(chan error, 1)
				go func() {
					for {
						select {
						case <-stop:
							ended <- nil
							return
						default:
						}
						if _, err := unix.Write(socket, frame); err != nil && !errors.Is(err, unix.ENOBUFS) {
							ended <- err
							return
						}
					}
				}()
				r := wait()
				close(stop)
				if err := <-ended; err != nil && !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.ENXIO) {
					t.Fatal(err)
				}
				if err := r.Err(); err != nil {
					t.Fatal(err)
				}
				if least := n.Packets * uint64(test.size); r.Count != n.Packets || r.Bytes < least-uint64(test.size) || r.Bytes > least {
					t.Errorf("%d packets, %d bytes, want %d of %d", r.Count, r.Bytes, n.Packets, test.size)
				}
			})
		})
	}
}
