package machine

import (
	"runtime"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

// raiseProcs makes GOMAXPROCS at least one more than the number of goroutines
// that must not wait for each other: a vCPU that comes out of the guest, or a
// worker that is woken, would otherwise wait for one that is in the kernel and
// has not given up its P.
func raiseProcs(busy int) {
	if want := busy + 1; runtime.GOMAXPROCS(0) < want {
		runtime.GOMAXPROCS(want)
	}
}

// raising is a virtio device that has raiseProcs count the workers of virtqueues
// as soon as there are some. A start does not pay for it: the runtime stops
// everything for a change.
type raising struct {
	virtioDevice
	m *Machine
}

// Start implements virtio.Device.
func (d raising) Start(driver virtio.Driver) error {
	raiseProcs(d.m.cfg.CPUs + d.m.virtqueues())
	return d.virtioDevice.Start(driver)
}
