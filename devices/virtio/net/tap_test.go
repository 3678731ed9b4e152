package net

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio/net/tap"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/internal/testenv"
)

// newNamespace puts the test, which is not to start other goroutines for what
// makes interfaces, into a network namespace of its own.
func newNamespace(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		testenv.Lacks(t, "making tap interfaces needs root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		testenv.Lacks(t, "no tap interfaces here: %v", err)
	}
	// Without Unlock: the thread ends with the test.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	// Nothing but the frames of the tests is to be seen.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// newBridge makes the bridge br0, which says nothing by itself.
func newBridge(t testing.TB) {
	t.Helper()
	run(t, "ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
	run(t, "ip", "link", "set", "br0", "up")
}

// run runs a command in the namespace.
func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

func openTap(t testing.TB, c tap.Config) *tap.Tap {
	t.Helper()
	b, err := tap.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// wireTo is a wire whose other end is a packet socket on an interface.
func wireTo(t testing.TB, name string) *wire {
	t.Helper()
	const all = 0x0300 // ETH_P_ALL in network order
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(s) })
	r, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFINDEX, r); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(s, &unix.SockaddrLinklayer{Protocol: all, Ifindex: int(r.Uint32())}); err != nil {
		t.Fatal(err)
	}
	// With a header in front of each frame, as on a wire.
	if err := unix.SetsockoptInt(s, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		t.Fatal(err)
	}
	const vnetHeaderSize = 24 // PACKET_VNET_HDR_SZ
	if err := unix.SetsockoptInt(s, unix.SOL_PACKET, vnetHeaderSize, headerSize); err != nil {
		testenv.Lacks(t, "a kernel with PACKET_VNET_HDR_SZ (6.4): %v", err)
	}
	// Not what the test sends itself.
	if err := unix.SetsockoptInt(s, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		t.Fatal(err)
	}
	tv := unix.NsecToTimeval(int64(virtiotest.Patience))
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	return &wire{t: t, peers: []int{s}}
}

// newTapGuest makes a guest on a tap interface, with a wire to that.
func newTapGuest(t testing.TB, c tap.Config, o virtiotest.Options) (*guest, *tap.Tap) {
	t.Helper()
	b := openTap(t, c)
	w := wireTo(t, b.Name())
	g := newGuest(t, Config{Backend: b}, o)
	g.wire = w
	return g, b
}

func TestTapTraffic(t *testing.T) {
	newNamespace(t)
	g, b := newTapGuest(t, tap.Config{}, virtiotest.Options{})
	if b.MTU() != 1500 {
		t.Errorf("MTU %d, want 1500", b.MTU())
	}
	g.give(64, 1526)
	for i := range 50 {
		size := 60 + 29*i
		g.send(testFrame(size, i))
		_, got := g.wire.get()
		sameFrame(t, fmt.Sprintf("sent %d", i), got, testFrame(size, i))
		g.wire.put(testFrame(size, i))
		_, got = g.receive()
		sameFrame(t, fmt.Sprintf("received %d", i), got, testFrame(size, i))
	}
	// In bursts.
	for i := range 10 {
		g.wire.put(testFrame(60+i, i))
	}
	for i := range 10 {
		_, got := g.receive()
		sameFrame(t, fmt.Sprintf("burst %d", i), got, testFrame(60+i, i))
	}
}

// TestTapBridge joins two guests by a bridge.
func TestTapBridge(t *testing.T) {
	newNamespace(t)
	newBridge(t)
	a, _ := newTapGuest(t, tap.Config{Bridge: "br0"}, virtiotest.Options{})
	b, _ := newTapGuest(t, tap.Config{Bridge: "br0", Name: "vm1"}, virtiotest.Options{})
	a.give(32, 2048)
	b.give(32, 2048)
	for i := range 20 {
		a.send(testFrame(60+50*i, i))
		_, got := b.receive()
		sameFrame(t, "from a to b", got, testFrame(60+50*i, i))
		b.send(testFrame(70+50*i, i))
		_, got = a.receive()
		sameFrame(t, "from b to a", got, testFrame(70+50*i, i))
	}
}

// tcpFrame is a TCP segment of n bytes of data without its checksum, of which
// only the part for the pseudo header is there, and the header that says so.
func tcpFrame(t *testing.T, n int, ipv6 bool) (header, frame []byte) {
	t.Helper()
	eth := layers.Ethernet{SrcMAC: testMAC[:], DstMAC: []byte{2, 0, 0, 0, 0, 0x99}, EthernetType: layers.EthernetTypeIPv4}
	tcp := layers.TCP{SrcPort: 1000, DstPort: 2000, Seq: 12345, Ack: 7, ACK: true, PSH: true, Window: 1000}
	data := testFrame(n, 5)
	var network gopacket.SerializableLayer
	gso, start := byte(1), ethernetHeader+20 // VIRTIO_NET_HDR_GSO_TCPV4
	if ipv6 {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP,
			SrcIP: bytes.Repeat([]byte{0xfd}, 16), DstIP: bytes.Repeat([]byte{0xfc}, 16)}
		tcp.SetNetworkLayerForChecksum(ip)
		network = ip
		gso, start = 4, ethernetHeader+40 // VIRTIO_NET_HDR_GSO_TCPV6
	} else {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: []byte{10, 0, 0, 1}, DstIP: []byte{10, 0, 0, 2}}
		tcp.SetNetworkLayerForChecksum(ip)
		network = ip
	}
	buf := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, options, &eth, network, &tcp, gopacket.Payload(data)); err != nil {
		t.Fatal(err)
	}
	frame = buf.Bytes()
	length := len(frame) - start
	binary.BigEndian.PutUint16(frame[start+16:], pseudoChecksum(frame, start, length, ipv6))
	header = make([]byte, headerSize)
	header[headerFlags] = flagNeedsCsum
	le := binary.LittleEndian
	if n > 1400 {
		header[headerGSOType] = gso
		le.PutUint16(header[2:], uint16(start+20)) // hdr_len
		le.PutUint16(header[4:], 1400)             // gso_size
	}
	le.PutUint16(header[6:], uint16(start)) // csum_start
	le.PutUint16(header[8:], 16)            // csum_offset
	return header, frame
}

// pseudoChecksum is the sum over the pseudo header.
func pseudoChecksum(frame []byte, start, length int, ipv6 bool) uint16 {
	addresses := frame[start-8 : start]
	if ipv6 {
		addresses = frame[start-32 : start]
	}
	sum := uint32(length) + uint32(layers.IPProtocolTCP)
	for i := 0; i < len(addresses); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(addresses[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// TestTapSegments sends TCP segments without checksums, larger than the MTU, to
// another guest: one that takes them as they are, and one that needs them cut
// and summed.
func TestTapSegments(t *testing.T) {
	for _, size := range []int{100, 3000, 60000} {
		for _, ipv6 := range []bool{false, true} {
			for _, without := range []uint64{0, guestOffloads, FeatureGuestTSO4 | FeatureGuestTSO6, guestOffloads | FeatureMergeable} {
				t.Run(fmt.Sprintf("%d bytes, IPv6 %v, without %#x", size, ipv6, without), func(t *testing.T) {
					newNamespace(t)
					newBridge(t)
					a, _ := newTapGuest(t, tap.Config{Bridge: "br0"}, virtiotest.Options{})
					b, _ := newTapGuest(t, tap.Config{Bridge: "br0"}, virtiotest.Options{Without: without})
					b.give(128, 1526)
					header, frame := tcpFrame(t, size, ipv6)
					a.sendHeader(header, frame)
					if s := a.device.Stats().Send; s.Frames != 1 {
						t.Fatalf("counts of the sender %+v", s)
					}
					data := testFrame(size, 5)
					for frames := 0; len(data) > 0; frames++ {
						h, got := b.receive()
						part, summed := tcpData(t, got)
						if !summed && (without&FeatureGuestCsum != 0 || h[headerFlags]&flagNeedsCsum == 0) {
							t.Errorf("frame %d has a wrong checksum; header % x", frames, h)
						}
						if whole := without&FeatureGuestTSO4 == 0; whole && len(part) != size {
							t.Errorf("%d bytes came in a frame, want all %d", len(part), size)
						} else if !whole && len(part) > 1400 {
							t.Errorf("%d bytes came in a frame, want it cut", len(part))
						}
						if !bytes.HasPrefix(data, part) || len(part) == 0 {
							t.Fatalf("frame %d has the wrong %d bytes", frames, len(part))
						}
						data = data[len(part):]
					}
				})
			}
		}
	}
}

// tcpData is the data of a TCP segment, and whether its checksum is right.
func tcpData(t *testing.T, frame []byte) (data []byte, summed bool) {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	l, ok := p.TransportLayer().(*layers.TCP)
	if !ok {
		t.Fatalf("no TCP segment: %v", p)
	}
	if err := l.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
		t.Fatal(err)
	}
	err, result := l.VerifyChecksum()
	if err != nil {
		t.Fatal(err)
	}
	return l.LayerPayload(), result.Valid
}

// TestTapBadHeaders tests that a frame whose header makes no sense costs nothing
// but that frame.
func TestTapBadHeaders(t *testing.T) {
	newNamespace(t)
	g, _ := newTapGuest(t, tap.Config{}, virtiotest.Options{})
	header, frame := tcpFrame(t, 3000, false)
	for _, test := range []struct {
		name   string
		change func(h []byte)
		sure   bool // that every kernel refuses it
	}{
		{"segments of no size", func(h []byte) { h[4], h[5] = 0, 0 }, true},
		{"unknown segmentation", func(h []byte) { h[headerGSOType] = 0x55 }, true},
		{"UDP fragments", func(h []byte) { h[headerGSOType] = 3 }, false},
		{"checksum behind the end", func(h []byte) { h[6], h[7] = 0xff, 0xff }, true},
		{"checksum's place behind the end", func(h []byte) { h[8], h[9] = 0xff, 0xff }, true},
		{"header longer than the frame", func(h []byte) { h[2], h[3] = 0xff, 0xff }, false},
		{"all ones", func(h []byte) { copy(h, bytes.Repeat([]byte{0xff}, headerSize)) }, true},
	} {
		before := g.device.Stats().Send
		h := bytes.Clone(header)
		test.change(h)
		g.sendHeader(h, frame)
		after := g.device.Stats().Send
		if after.Frames+after.Dropped != before.Frames+before.Dropped+1 || test.sure && after.Dropped != before.Dropped+1 {
			t.Errorf("%s: counts %+v, before %+v", test.name, after, before)
		}
		// The frame may have come out of the interface, with something that a
		// packet socket cannot say in its header (EINVAL).
		g.send(testFrame(100, 9))
		p := make([]byte, maxFrame)
		for n := 0; !bytes.Equal(p[min(n, headerSize):n], testFrame(100, 9)); {
			var err error
			if n, err = unix.Read(g.wire.peers[0], p); errors.Is(err, unix.EAGAIN) {
				t.Fatalf("%s: the next frame did not come", test.name)
			}
			n = max(n, 0)
		}
	}
}

// TestTapPairs tests that frames of the host are spread over the pairs that the
// driver uses, and come on no other.
func TestTapPairs(t *testing.T) {
	newNamespace(t)
	const pairs, flows = 4, 64
	b := openTap(t, tap.Config{Queues: pairs})
	w := wireTo(t, b.Name())
	g := newGuest(t, Config{Backend: b}, virtiotest.Options{})
	g.wire = w
	queues := append([]*virtiotest.Queue(nil), g.Queues...)
	fill := func() {
		for i := range pairs {
			g.Queues[0] = queues[2*i]
			g.give(g.rx().Free(), 512)
		}
	}
	fill()
	counts := func() (n [pairs]int) {
		for i := range n {
			for _, _, ok := queues[2*i].Take(); ok; _, _, ok = queues[2*i].Take() {
				n[i]++
			}
		}
		return n
	}
	for _, use := range []int{1, pairs, 2, 3} {
		if use > 1 {
			if got := g.command(classMQ, mqPairsSet, byte(use), 0); got != ackOK {
				t.Fatalf("%d pairs: answer %d", use, got)
			}
		}
		before := g.device.Stats().Receive.Frames
		for i := range flows {
			_, frame := tcpFrame(t, 100, false)
			binary.BigEndian.PutUint16(frame[ethernetHeader+20:], uint16(1000+37*i)) // port
			w.put(frame)
		}
		await(t, "all frames are received", func() bool { return g.device.Stats().Receive.Frames == before+flows })
		for i, n := range counts() {
			if (n > 0) != (i < use) {
				t.Errorf("with %d pairs in use, pair %d got %d of %d frames", use, i, n, flows)
			}
		}
		// Frames go out by any pair in use.
		for i := range use {
			g.Queues[1] = queues[2*i+1]
			g.send(testFrame(90+i, i))
			_, got := w.get()
			sameFrame(t, "sent", got, testFrame(90+i, i))
		}
		fill()
		g.Stop()
		g.Resume()
	}
}

// TestTapDown tests that frames are lost while the interface is down, with one
// warning, and flow again afterwards.
func TestTapDown(t *testing.T) {
	newNamespace(t)
	b := openTap(t, tap.Config{Name: "vm0"})
	var c virtiotest.Warnings
	g := newGuest(t, Config{Backend: b, Warn: c.Add}, virtiotest.Options{})
	run(t, "ip", "link", "set", "vm0", "down")
	g.send(testFrame(60, 1))
	g.send(testFrame(60, 2))
	if errs := c.All(); len(errs) != 1 || !errors.Is(errs[0], errDown) {
		t.Errorf("warnings %v, want one", errs)
	}
	if s := g.device.Stats().Send; s.Dropped != 2 {
		t.Errorf("counts %+v", s)
	}
	run(t, "ip", "link", "set", "vm0", "up")
	g.wire = wireTo(t, "vm0")
	g.send(testFrame(60, 3))
	_, got := g.wire.get()
	sameFrame(t, "sent", got, testFrame(60, 3))
}

// TestTapDeleted tests that the guest loses its link when the interface goes.
func TestTapDeleted(t *testing.T) {
	newNamespace(t)
	b := openTap(t, tap.Config{Name: "vm0"})
	var c virtiotest.Warnings
	g := newGuest(t, Config{Backend: b, Warn: c.Add}, virtiotest.Options{})
	g.give(4, 2048)
	run(t, "ip", "link", "del", "vm0")
	g.AwaitConfigChange()
	if s := g.Config(6, 1)[0]; s != 0 {
		t.Errorf("status %d, want link down", s)
	}
	g.send(testFrame(60, 1))
	await(t, "the operator is warned", func() bool { return len(c.All()) > 0 })
	if errs := c.All(); len(errs) != 1 {
		t.Errorf("warnings %v, want one", errs)
	}
}
