// Package net is the virtio network device (§5.1): frames between the
// virtqueues of a guest and a Backend on the host, such as a tap interface
// (package tap) or a network stack in another process (package user).
//
// Frames are not copied in this process: the kernel reads and writes them where
// they are in guest memory. Checksums and the segmentation of large frames are
// left to whoever can do them best, as far as the driver and the back end agree.
//
// What a driver sends that the host refuses is dropped and counted, as on any
// network; only a broken virtqueue makes the device ask for a reset.
package net

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
	"github.com/godwit-vmm/godwit/devices/virtio/net/pcap"
)

// Feature bits of the device (§5.1.3).
const (
	FeatureCsum          uint64 = 1 << 0  // VIRTIO_NET_F_CSUM
	FeatureGuestCsum     uint64 = 1 << 1  // VIRTIO_NET_F_GUEST_CSUM
	FeatureGuestOffloads uint64 = 1 << 2  // VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
	FeatureMTU           uint64 = 1 << 3  // VIRTIO_NET_F_MTU
	FeatureMAC           uint64 = 1 << 5  // VIRTIO_NET_F_MAC
	FeatureGuestTSO4     uint64 = 1 << 7  // VIRTIO_NET_F_GUEST_TSO4
	FeatureGuestTSO6     uint64 = 1 << 8  // VIRTIO_NET_F_GUEST_TSO6
	FeatureGuestECN      uint64 = 1 << 9  // VIRTIO_NET_F_GUEST_ECN
	FeatureHostTSO4      uint64 = 1 << 11 // VIRTIO_NET_F_HOST_TSO4
	FeatureHostTSO6      uint64 = 1 << 12 // VIRTIO_NET_F_HOST_TSO6
	FeatureHostECN       uint64 = 1 << 13 // VIRTIO_NET_F_HOST_ECN
	FeatureMergeable     uint64 = 1 << 15 // VIRTIO_NET_F_MRG_RXBUF
	FeatureStatus        uint64 = 1 << 16 // VIRTIO_NET_F_STATUS
	FeatureControl       uint64 = 1 << 17 // VIRTIO_NET_F_CTRL_VQ
	FeatureAnnounce      uint64 = 1 << 21 // VIRTIO_NET_F_GUEST_ANNOUNCE
	FeatureMultiqueue    uint64 = 1 << 22 // VIRTIO_NET_F_MQ
	FeatureControlMAC    uint64 = 1 << 23 // VIRTIO_NET_F_CTRL_MAC_ADDR
)

// baseFeatures are offered with every back end. CTRL_RX and CTRL_VLAN are not:
// without them the driver leaves the filtering of frames to the guest, which
// has to do it anyway behind a bridge.
const baseFeatures = FeatureMAC | FeatureMergeable | FeatureStatus | FeatureControl | FeatureAnnounce |
	FeatureControlMAC | FeatureGuestOffloads

// Limits of the device.
const (
	// MaxPairs is how many queue pairs a device may have. The specification
	// allows more (§5.1.5), but each one costs two threads.
	MaxPairs = 16
	// MinMTU and MaxMTU bound the MTU in bytes (§5.1.4.1). The upper limit is
	// that of a tap interface.
	MinMTU = 68
	MaxMTU = 65521

	dataQueueSize    = 256
	controlQueueSize = 64
)

// Status bits of the device configuration space (§5.1.4).
const (
	statusLinkUp   = 1 // VIRTIO_NET_S_LINK_UP
	statusAnnounce = 2 // VIRTIO_NET_S_ANNOUNCE
)

// Config says what a network device is like.
type Config struct {
	// MAC is the address that the guest's interface has unless the guest
	// gives it another one.
	MAC MAC
	// Backend is what the device is connected to. The device closes it.
	Backend Backend
	// Receive and Send limit what goes to the guest and what comes from it,
	// in bytes and frames.
	Receive, Send limit.Config
	// Capture gets what passes; nil captures nothing. The device does not
	// close it.
	Capture *pcap.Interface
	// Warn is told about trouble of the host, once for each kind. It is
	// called from any goroutine; nil ignores.
	Warn func(error)
}

// Device is a network device.
type Device struct {
	config   Config
	features uint64
	mtu      uint16
	pairs    []pair
	control  control
	warnings warnings

	// mu guards what both the transport and the device's own goroutines use.
	mu sync.Mutex
	// mac, active and offloads are what the driver has set: the address, the
	// number of queue pairs that it uses, and which of the guest's offloads
	// it wants now.
	mac      MAC
	active   int
	offloads offloads
	// announce asks the guest to make itself known to the network.
	// announceDue is set when it was not asked since the start.
	announce, announceDue bool
	linkDown              bool
	// driver is nil while the device is stopped.
	driver *virtio.Driver
}

// offloads is what a driver has said about its offloads on the control queue.
type offloads struct {
	// set is false as long as all that it accepted are on.
	set bool
	// features are the feature bits of those that are on.
	features uint64
}

// New makes a device. It takes the back end over: Close closes it, and so does
// New if it fails.
func New(c Config) (*Device, error) {
	d := &Device{config: c}
	if err := d.init(); err != nil {
		return nil, fmt.Errorf("network device: %w", errors.Join(err, d.Close()))
	}
	return d, nil
}

func (d *Device) init() error {
	if err := d.config.MAC.check(); err != nil {
		return err
	}
	if d.config.Backend == nil {
		return errors.New("no back end")
	}
	fds := d.config.Backend.Descriptors()
	if len(fds) < 1 || len(fds) > MaxPairs {
		return fmt.Errorf("%d queue pairs, want 1 to %d", len(fds), MaxPairs)
	}
	mtu := d.config.Backend.MTU()
	if mtu < MinMTU || mtu > MaxMTU {
		return fmt.Errorf("MTU %d, want %d to %d", mtu, MinMTU, MaxMTU)
	}
	d.mtu = uint16(mtu)
	d.features = baseFeatures | FeatureMTU | offloadFeatures(d.config.Backend.Offloads())
	if len(fds) > 1 {
		d.features |= FeatureMultiqueue
	}
	receive, err := limit.New(d.config.Receive, nil)
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	send, err := limit.New(d.config.Send, nil)
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	d.warnings.warn = d.config.Warn
	d.control.device = d
	for i, fd := range fds {
		p, err := newPair(d, i, fd, receive, send)
		if err != nil {
			return err
		}
		d.pairs = append(d.pairs, p)
	}
	d.Reset()
	return nil
}

// Type is TypeNet.
func (d *Device) Type() virtio.DeviceType { return virtio.TypeNet }

// Features are what both the device and its back end can do.
func (d *Device) Features() uint64 { return d.features }

// QueueSizes are those of a receive and a send queue for each pair, and of the
// control queue (§5.1.2).
func (d *Device) QueueSizes() []uint16 {
	var sizes []uint16
	for range d.pairs {
		sizes = append(sizes, dataQueueSize, dataQueueSize)
	}
	return append(sizes, controlQueueSize)
}

// Backend is what the device is connected to.
func (d *Device) Backend() Backend { return d.config.Backend }

// MAC is the address that the guest's interface has now.
func (d *Device) MAC() MAC {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mac
}

// ReadConfig reads the device configuration space (§5.1.4).
func (d *Device) ReadConfig(offset uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	status := uint16(statusLinkUp)
	if d.linkDown {
		status = 0
	}
	if d.announce {
		status |= statusAnnounce
	}
	config := d.mac[:len(d.mac):len(d.mac)]
	for _, field := range []uint16{status, uint16(len(d.pairs)), d.mtu} {
		config = append(config, byte(field), byte(field>>8))
	}
	virtio.ReadConfig(config, offset, p)
}

// WriteConfig ignores what is written: a driver of virtio 1 changes nothing
// here (§5.1.4).
func (d *Device) WriteConfig(uint64, []byte) {}

// Announce asks the guest to make itself known to the network, so that switches
// learn where it is after a move (§5.1.6.5.4). Before Start it takes effect at
// Start. A driver without GUEST_ANNOUNCE is not asked.
func (d *Device) Announce() {
	d.mu.Lock()
	d.announce = d.driver == nil || d.driver.Has(FeatureAnnounce)
	tell := func() {}
	if d.announce && d.driver != nil {
		tell = d.driver.ConfigChanged
	}
	d.mu.Unlock()
	tell()
}

// Close frees the back end and what else the device has of the host. The device
// is stopped.
func (d *Device) Close() error {
	if d.config.Backend == nil {
		return nil
	}
	err := d.config.Backend.Close()
	d.config.Backend = nil
	for _, p := range d.pairs {
		err = errors.Join(err, p.close())
	}
	return err
}

// ChangeLimits changes what goes to the guest and what comes from it, for all queue
// pairs together. It may be called from any goroutine, until Close. An error changes
// nothing.
func (d *Device) ChangeLimits(receive, send limit.Change) error {
	if err := receive.Check(); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	if err := send.Check(); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	d.pairs[0].receive.limiter.Change(receive)
	d.pairs[0].send.limiter.Change(send)
	for _, p := range d.pairs {
		for _, w := range p.workers() {
			w.timer.Set(0) // who waits tries again
		}
	}
	return nil
}

// lose tells the guest and the operator that the back end is gone for good,
// because of an error of its descriptor or, if that is 0, its end.
func (d *Device) lose(errno unix.Errno) {
	d.mu.Lock()
	lost := !d.linkDown
	d.linkDown = true
	tell := func() {}
	if d.driver != nil {
		tell = d.driver.ConfigChanged
	}
	d.mu.Unlock()
	if !lost {
		return
	}
	tell()
	var err error = errno
	switch errno {
	case 0, unix.EBADFD, unix.EPIPE, unix.ECONNRESET:
		err = d.config.Backend.Err()
	}
	d.warnings.add(warnLost, fmt.Errorf("the guest's network is down: %w", err))
}
