package net

import "github.com/godwit-vmm/godwit/devices/virtio"

// The header in front of each frame, struct virtio_net_hdr_v1 (§5.1.6): sizes
// and offsets in bytes.
const (
	headerSize    = 12
	headerFlags   = 0
	headerGSOType = 1
	headerBuffers = 10

	flagNeedsCsum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	gsoNone       = 0 // VIRTIO_NET_HDR_GSO_NONE
)

const (
	// ethernetHeader is the least that a frame has: two addresses and a type.
	ethernetHeader = 14
	// tags is what two VLAN tags (IEEE 802.1ad) add to it.
	tags = 8
	// maxPacket is the largest IP packet.
	maxPacket = 65535
	// maxFrame is the largest frame together with its header.
	maxFrame = headerSize + ethernetHeader + tags + maxPacket
)

// fixHeader completes the header of a frame for the guest that lies in
// chains[0], of which there are n (§5.1.6.4.1), and tells whether the guest can
// do with such a frame what is left to be done.
func fixHeader(c *virtio.Chain, features uint64, n int) bool {
	var scratch [headerSize]byte
	h := c.Write[0].Data
	whole := len(h) >= headerSize
	if !whole {
		copyWritten(scratch[:], c)
		h = scratch[:]
	}
	if h[headerGSOType] != gsoNone && features&largeFrames == 0 {
		return false
	}
	if features&FeatureGuestCsum == 0 {
		if h[headerFlags]&flagNeedsCsum != 0 {
			return false
		}
		h[headerFlags] = 0
	}
	h[headerBuffers], h[headerBuffers+1] = byte(n), byte(n>>8)
	if !whole {
		c.CopyIn(0, h)
	}
	return true
}

// copyWritten copies from the writable part of c and returns how many bytes
// there were.
func copyWritten(p []byte, c *virtio.Chain) int {
	n := 0
	for _, b := range c.Write {
		n += copy(p[n:], b.Data)
	}
	return n
}
