package net

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// rarp is a reverse ARP request (RFC 903) for the address itself: nobody has to answer,
// but every switch on the way learns where the address is. It has what a network card
// would not send: a struct virtio_net_hdr_v1 in front.
func rarp(mac MAC) []byte {
	const (
		etherType   = 0x8035
		requestOp   = 3
		frameLength = 60 // the shortest of Ethernet, without its checksum
	)
	f := make([]byte, headerSize, headerSize+frameLength)
	f = append(f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	f = append(f, mac[:]...)
	f = append(f, etherType>>8, etherType&0xff)
	f = append(f, 0, 1, 8, 0, 6, 4, 0, requestOp) // Ethernet and IPv4 addresses
	for range 2 {                                 // of the sender, and the wanted ones
		f = append(f, mac[:]...)
		f = append(f, 0, 0, 0, 0)
	}
	return f[:cap(f)]
}

// ShowPlace tells the network where the guest's address is by now, whether the driver
// announces itself (see Announce) or not. The back end must not be closed meanwhile.
func (d *Device) ShowPlace() error {
	d.mu.Lock()
	backend, mac := d.config.Backend, d.config.MAC
	d.mu.Unlock()
	if backend == nil {
		return nil
	}
	if _, err := unix.Write(backend.Descriptors()[0], rarp(mac)); err != nil {
		return fmt.Errorf("tell the network where %v is: %w", mac, err)
	}
	return nil
}
