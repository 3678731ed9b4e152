package main

import (
	virtionet "github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/devices/virtio/net/pcap"
	"github.com/godwit-vmm/godwit/machine"
)

// addNets gives the machine the network cards that the user asked for. Their
// MAC addresses come from its name. stop ends the capture, after the machine.
func (o *bootOptions) addNets(c *machine.Config, r *registration) (stop func() error, err error) {
	stop = func() error { return nil }
	var capture *pcap.File
	if o.pcap != "" {
		if capture, err = pcap.Create(o.pcap); err != nil {
			return nil, err
		}
		stop = capture.Close
	}
	for i, n := range o.nets {
		c.Nets = append(c.Nets, func() (*virtionet.Device, error) {
			known, err := r.wait()
			if err != nil {
				return nil, err
			}
			return n.Open(known.name, i, capture, c.Warn)
		})
	}
	return stop, nil
}
