package main

import (
	"github.com/godwit-vmm/godwit/devices/virtio/net/pcap"
	"github.com/godwit-vmm/godwit/internal/vmm"
)

// capture has what passes the network cards written to the file at path, if there is
// one. stop ends that, after the guest.
func capture(run *vmm.Options, path string) (stop func() error, err error) {
	if path == "" {
		return func() error { return nil }, nil
	}
	if run.Capture, err = pcap.Create(path); err != nil {
		return nil, err
	}
	return run.Capture.Close, nil
}
