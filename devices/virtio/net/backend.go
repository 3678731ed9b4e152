package net

import (
	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

// Backend is the host's end of the cable. Its methods are called one after the
// other.
//
// Offloads are the bits of TUNSETOFFLOAD: TUN_F_CSUM says that a frame may come
// without its checksum, TUN_F_TSO4 and so on that it may be larger than the MTU
// and have to be cut into segments. A header in front of the frame says so.
type Backend interface {
	// Descriptors has a non-blocking file descriptor for each queue pair.
	// Each readv or writev on it is one frame behind a struct
	// virtio_net_hdr_v1 (12 bytes, the last two of which do not matter). They
	// may be polled, and do not change.
	Descriptors() []int
	// Offloads are those that the back end can do for the guest, and those
	// of the guest that it can make use of.
	Offloads() uint32
	// SetOffloads says what the guest can do with frames from the back end.
	SetOffloads(offloads uint32) error
	// SetPairs says that the guest uses the first n pairs only.
	SetPairs(n int) error
	// MTU is that of the link in bytes.
	MTU() int
	// Err says why a descriptor has come to its end, as a socket does when
	// the other side is gone. It may take a moment.
	Err() error
	// Close frees the back end, which nobody uses any more.
	Close() error
}

// offloadBits says which features of the guest, and of the device, go with an
// offload.
var offloadBits = []struct {
	offload       uint32
	guest, device uint64
}{
	{unix.TUN_F_CSUM, FeatureGuestCsum, FeatureCsum},
	{unix.TUN_F_TSO4, FeatureGuestTSO4, FeatureHostTSO4},
	{unix.TUN_F_TSO6, FeatureGuestTSO6, FeatureHostTSO6},
	{unix.TUN_F_TSO_ECN, FeatureGuestECN, FeatureHostECN},
}

// guestOffloads are the features that a driver may switch on the control queue
// (§5.1.6.5.6.1).
const guestOffloads = FeatureGuestCsum | FeatureGuestTSO4 | FeatureGuestTSO6 | FeatureGuestECN

// largeFrames are the features with which frames larger than the MTU come.
const largeFrames = FeatureGuestTSO4 | FeatureGuestTSO6

// offloadFeatures are the features of a device whose back end has the given
// offloads.
func offloadFeatures(offloads uint32) uint64 {
	var features uint64
	for _, b := range offloadBits {
		if offloads&b.offload != 0 {
			features |= b.guest | b.device
		}
	}
	return features
}

// offloadsFor are the offloads for a guest with the given features. Those that
// need another one which the driver lacks are left out (§5.1.3.1).
func offloadsFor(features uint64) uint32 {
	if features&FeatureGuestCsum == 0 {
		return 0
	}
	if features&largeFrames == 0 {
		features &^= FeatureGuestECN
	}
	var offloads uint32
	for _, b := range offloadBits {
		if features&b.guest != 0 {
			offloads |= b.offload
		}
	}
	return offloads
}

// applyOffloads tells the back end what the guest can do: what the driver
// accepted, or what it has chosen of that since. d.mu is held.
func (d *Device) applyOffloads(driver *virtio.Driver) error {
	on := driver.Features & guestOffloads
	if d.offloads.set {
		on &= d.offloads.features
	}
	return d.config.Backend.SetOffloads(offloadsFor(on))
}
