package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"

	virtionet "github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/devices/virtio/net/tap"
	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/machine"
	"golang.org/x/sys/unix"
)

// netOfQEMU is what a packet may cost of QEMU without vhost (issue 3): 1.2 times as
// fast.
const netOfQEMU = 0.833

const (
	qemuNet   = "QEMU"
	qemuVhost = "QEMU, vhost"
)

// The two ends of the cable. The host has no address on it: what the guest sends
// costs it no more than to be thrown away.
var (
	guestEnd = micro.Endpoint{MAC: [6]byte{2, 0, 0, 0, 0, 1}, IP: [4]byte{192, 0, 2, 1}, Port: 1}
	hostEnd  = micro.Endpoint{MAC: [6]byte{2, 0, 0, 0, 0, 2}, IP: [4]byte{192, 0, 2, 2}, Port: 2}
)

// netCases are the benchmarks of the network card.
func netCases() []Case {
	small := micro.Net{Size: 64, Packets: 50_000, Warmup: 2000}
	large := micro.Net{Size: 65_226, MSS: 1448, Segment: 32 << 10, Packets: 10_000, Warmup: 500}
	receive := func(n micro.Net) micro.Net {
		n.Mode, n.Segment = micro.Receive, 0
		return n
	}
	one := func(n micro.Net) func(context.Context, *Env) (*Result, error) {
		n.Local, n.Peer, n.Depth, n.Stop = guestEnd, hostEnd, 64, micro.AnyStop()
		n.EventIdx = true
		return func(ctx context.Context, e *Env) (*Result, error) { return runNet(ctx, e, n) }
	}
	return []Case{
		{Name: "net-tx-64", What: "64-byte packets from the guest to a tap interface", Run: one(small)},
		{Name: "net-tx-64k", What: "64 KiB TCP packets, to be cut by the host, from the guest to a tap interface", Run: one(large)},
		{Name: "net-rx-64", What: "64-byte packets from a tap interface to the guest", Run: one(receive(small))},
		{Name: "net-rx-64k", What: "64 KiB TCP packets from a tap interface to the guest, in one piece", Run: one(receive(large))},
	}
}

// runNet compares a plain loop, godwit and QEMU on one tap interface, in a network
// that has nothing else.
func runNet(ctx context.Context, e *Env, n micro.Net) (*Result, error) {
	all := n.Packets
	if e.Quick {
		n.Packets, n.Warmup = n.Packets/10, n.Warmup/10
	}
	type outcome struct {
		r   *Result
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		// The thread ends with the goroutine: it cannot go back.
		runtime.LockOSThread()
		r, err := runNetAlone(ctx, e, n, all)
		done <- outcome{r, err}
	}()
	o := <-done
	return o.r, o.err
}

// runNetAlone is runNet in a network of its thread's own. Allocations are counted in
// runs of all packets.
func runNetAlone(ctx context.Context, e *Env, n micro.Net, all uint64) (*Result, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, Skip("a network of its own takes privileges: %v", err)
	}
	cable, err := newCable(ctx, e, n)
	if err != nil {
		return nil, err
	}
	defer cable.close()
	guest, err := newDeviceGuest(e, n.ELF)
	if err != nil {
		return nil, err
	}
	defer guest.close()
	r := newDeviceResult("packet", atMostTimes(godwitName, netOfQEMU, qemuNet))
	if n.Mode == micro.Transmit {
		r.addLatencies()
	}
	card := machine.Config{NoRNG: true, Nets: []machine.Net{cable.open}}
	inQEMU := func(ctx context.Context, vhost string) ([]float64, error) {
		stop, err := cable.traffic()
		if err != nil {
			return nil, err
		}
		defer stop()
		return r.samplesOf(timings(guest.inQEMU(ctx,
			"-netdev", "tap,id=net,script=no,downscript=no,vhost="+vhost+",ifname="+cable.name,
			"-device", fmt.Sprintf("virtio-net-pci,netdev=net,mac=%v", net.HardwareAddr(guestEnd.MAC[:])))))
	}
	err = r.compete(ctx, e, e.rounds(11, 3),
		contestant{name: loopName, run: func(context.Context) ([]float64, error) { return r.samplesOf(cable.loop(n)) }},
		contestant{name: godwitName, run: func(ctx context.Context) ([]float64, error) {
			stop, err := cable.traffic()
			if err != nil {
				return nil, err
			}
			defer stop()
			return r.samplesOf(timings(guest.inMachine(ctx, card)))
		}},
		contestant{name: qemuNet, peer: true, run: func(ctx context.Context) ([]float64, error) { return inQEMU(ctx, "off") }},
		contestant{name: qemuVhost, peer: true, run: func(ctx context.Context) ([]float64, error) {
			if _, err := os.Stat("/dev/vhost-net"); err != nil {
				return nil, err
			}
			return inQEMU(ctx, "on")
		}},
	)
	if err != nil {
		return nil, err
	}
	return r, r.countDeviceAllocations(e, all, func(packets uint64) (*deviceRun, error) {
		n.Packets = packets
		guest, err := newDeviceGuest(e, n.ELF)
		if err != nil {
			return nil, err
		}
		defer guest.close()
		stop, err := cable.traffic()
		if err != nil {
			return nil, err
		}
		defer stop()
		return guest.inMachine(ctx, card)
	})
}

// cable is a tap interface that stays, for one VMM after the other, and the host's
// end of it.
type cable struct {
	name string
	tap  *tap.Tap
	// sender is the program that writes the packet to the socket, if the guest
	// is to receive any; nil and empty if not.
	sender string
	socket *os.File
	packet []byte // behind a struct virtio_net_hdr
}

const cableName = "bench0"

func newCable(ctx context.Context, e *Env, n micro.Net) (*cable, error) {
	card, err := tap.Open(tap.Config{Name: cableName})
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		return nil, Skip("%v", err)
	}
	if err != nil {
		return nil, err
	}
	c := &cable{name: cableName, tap: card}
	if err = unix.IoctlSetInt(card.Descriptors()[0], unix.TUNSETPERSIST, 1); err == nil {
		err = card.Close()
	}
	if err == nil && n.Mode == micro.Receive {
		if c.sender, err = compile(ctx, e, "sender", senderSource); err != nil {
			return nil, err
		}
		err = c.openSocket(n)
	}
	if err != nil {
		return nil, fmt.Errorf("tap interface: %w", err)
	}
	return c, nil
}

// openSocket makes the packets that the guest receives, and what sends them.
func (c *cable) openSocket(n micro.Net) error {
	n.Mode, n.Local, n.Peer = micro.Transmit, n.Peer, n.Local
	var err error
	if c.packet, err = n.Packet(); err != nil {
		return err
	}
	link, err := net.InterfaceByName(c.name)
	if err != nil {
		return err
	}
	// Protocol 0: the socket gets nothing.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	c.socket = os.NewFile(uintptr(fd), "packet socket")
	const packetVnetHdr = 15
	return errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, packetVnetHdr, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 32<<20),
		unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link.Index}),
	)
}

func (c *cable) close() {
	if c.socket != nil {
		c.socket.Close()
	}
}

// open makes godwit's device.
func (c *cable) open() (*virtionet.Device, error) {
	card, err := tap.Open(tap.Config{Name: c.name})
	if err != nil {
		return nil, err
	}
	return virtionet.New(virtionet.Config{MAC: guestEnd.MAC, Backend: card})
}

// traffic sends to the guest, if it is to receive, until the function that it
// returns is called.
func (c *cable) traffic() (stop func(), err error) {
	if c.socket == nil {
		return func() {}, nil
	}
	p := exec.Command(c.sender)
	p.Stdin = bytes.NewReader(c.packet)
	p.ExtraFiles = []*os.File{c.socket}
	if err := p.Start(); err != nil {
		return nil, fmt.Errorf("sender of packets: %w", err)
	}
	return func() {
		_ = p.Process.Kill()
		_ = p.Wait() // it was killed
	}, nil
}

// loop does with system calls what a device must do at least: write packets to the
// interface, or read them.
func (c *cable) loop(n micro.Net) ([]float64, error) {
	card, err := tap.Open(tap.Config{Name: c.name})
	if err != nil {
		return nil, err
	}
	defer card.Close()
	fd := card.Descriptors()[0]
	const checksum, tso4 = 1, 2 // TUN_F_CSUM, TUN_F_TSO4
	offloads := uint32(0)
	if n.MSS > 0 {
		offloads = checksum | tso4
	}
	if err := card.SetOffloads(offloads); err != nil {
		return nil, err
	}
	loop := newPlainLoop(n.Warmup, n.Packets)
	do := func() error { return readPacket(fd, n.Size) }
	if n.Mode == micro.Transmit {
		packet, err := n.Packet()
		if err != nil {
			return nil, err
		}
		// The tap's header has two bytes more.
		const header = micro.PacketHeaderSize
		packet = slices.Concat(packet[:header], []byte{0, 0}, packet[header:])
		do = func() error {
			_, err := unix.Write(fd, packet)
			return err
		}
	}
	stop, err := c.traffic()
	if err != nil {
		return nil, err
	}
	defer stop()
	for range n.Warmup + n.Packets {
		if err := loop.step(do); err != nil {
			return nil, err
		}
	}
	return loop.samples(), nil
}

// readPacket waits for a packet of the size from the tap interface.
func readPacket(fd, size int) error {
	const header, limit = 12, 64 << 10
	var buf [header + limit + 64]byte
	for {
		got, err := unix.Read(fd, buf[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000); err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
		case err != nil:
			return err
		case got == header+size && binary.BigEndian.Uint16(buf[header+12:]) == 0x0800:
			return nil
		}
	}
}
