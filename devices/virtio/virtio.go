// Package virtio is what all virtio devices have in common (Virtual I/O Device
// specification 1.2): split virtqueues, the event loop that serves them away
// from the vCPU threads, and what a Device and its transport expect of each
// other. The PCI transport (vpci) and each device are packages below this one.
//
// A device is three things kept apart: what it does (a Device, tested without a
// guest), how it is wired (its Start adds its queues to a Loop), and what is
// saved (its State).
//
// The driver is not trusted. What breaks the rules of a virtqueue yields an
// error, which a device hands to Driver.Fail: the device asks for a reset and
// does nothing until it gets one, and everything else goes on.
//
// References are to the specification, 1.2.
package virtio

import (
	"fmt"

	"github.com/godwit-vmm/godwit/memory"
)

// DeviceType is the kind of a device (§5).
type DeviceType uint16

// The kinds of devices that godwit has.
const (
	TypeNet     DeviceType = 1
	TypeBlock   DeviceType = 2
	TypeConsole DeviceType = 3
	TypeEntropy DeviceType = 4
	TypeBalloon DeviceType = 5
	TypeVsock   DeviceType = 19
)

// String is the name of the kind in lower case.
func (t DeviceType) String() string {
	switch t {
	case TypeNet:
		return "net"
	case TypeBlock:
		return "block"
	case TypeConsole:
		return "console"
	case TypeEntropy:
		return "entropy"
	case TypeBalloon:
		return "balloon"
	case TypeVsock:
		return "vsock"
	}
	return fmt.Sprintf("type %d", uint16(t))
}

// Feature bits that concern the queues and the transport (§6). Those of a
// device are constants of its package.
const (
	FeatureIndirect uint64 = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	FeatureEventIdx uint64 = 1 << 29 // VIRTIO_F_EVENT_IDX
	FeatureVersion1 uint64 = 1 << 32 // VIRTIO_F_VERSION_1
)

// TransportFeatures are offered for every device, in addition to its own.
const TransportFeatures = FeatureIndirect | FeatureEventIdx | FeatureVersion1

// Device is what a virtio device does. The transport calls its methods one
// after the other, under a lock, on any thread; but see Start.
type Device interface {
	// Type of the device.
	Type() DeviceType
	// Features are the bits that the device offers beside those of the
	// transport. They do not change.
	Features() uint64
	// QueueSizes has the largest size of each queue, a power of two up to
	// MaxQueueSize. It does not change.
	QueueSizes() []uint16
	// ReadConfig fills p from the device configuration space at offset; what
	// lies behind its end reads as zero. WriteConfig ignores what cannot be
	// written. Offset and length come from the driver.
	ReadConfig(offset uint64, p []byte)
	WriteConfig(offset uint64, p []byte)
	// Start begins to serve the queues, on goroutines of the device's own.
	// An error is one of the host and has the effect of Driver.Fail.
	Start(d Driver) error
	// Stop ends the service. When it returns, the requests that the device
	// had taken are completed, and it touches neither guest memory nor
	// queues. The queues yield no more requests from just before Stop is
	// called (Queue.Hold), so a device may serve them until they seem empty.
	// The same queues may be started again, and go on where they were: that
	// is how a machine is paused. Stop of a device that is not started, or
	// whose Start failed, does nothing.
	Stop()
	// Reset forgets what the driver has told the device, as at power on
	// (§2.4). The device is stopped.
	Reset()
}

// Driver is what a started device knows of the driver: what it has set up, and
// how to reach it.
type Driver struct {
	Mem *memory.Guest
	// Features are those that both sides have.
	Features uint64
	// Queues has an entry for each of QueueSizes, nil for those that the
	// driver did not enable.
	Queues []*Queue
	// ConfigChanged tells the driver that the device configuration space has
	// changed (§2.5). It may be called from any goroutine, with locks of the
	// device held, but not when Stop has returned. What changes while the
	// device is stopped the driver learns at the next start.
	ConfigChanged func()
	// Fail takes the device out of service until the driver resets it
	// (DEVICE_NEEDS_RESET, §2.1.1), because of what err says. It returns at
	// once, and soon afterwards the transport stops the device; whoever
	// calls it does not touch the queue in question again. It may be called
	// from any goroutine, and more than once: the first error counts.
	Fail func(err error)
}

// Has tells whether both sides have all of the given feature bits.
func (d *Driver) Has(features uint64) bool { return d.Features&features == features }

// ReadConfig fills p from offset of a configuration space that is given as
// bytes, and with zeros behind its end.
func ReadConfig(config []byte, offset uint64, p []byte) {
	n := 0
	if offset < uint64(len(config)) {
		n = copy(p, config[offset:])
	}
	clear(p[n:])
}
