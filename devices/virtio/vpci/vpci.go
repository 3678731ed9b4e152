// Package vpci is the PCI transport of virtio devices (§4.1): a modern, that is
// not transitional, PCI function around a virtio.Device.
//
// The driver's registers lie in one BAR, the MSI-X table in another. A doorbell
// write reaches the device through an eventfd, which the hypervisor signals by
// itself where it can, and a worker of the device interrupts through MSI-X: the
// processors of the guest do no device work, and workers take no lock of the
// transport.
package vpci

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/godwit-vmm/godwit/devices/pci"
	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/memory"
)

// Doorbells lets the hypervisor signal an eventfd when the guest writes to an
// address, so that the write does not reach the BAR. The calls come one after
// the other.
type Doorbells interface {
	// Assign makes writes of any length to the address signal fd.
	Assign(fd int, at memory.GPA) error
	// Remove undoes Assign with the same arguments.
	Remove(fd int, at memory.GPA) error
}

// Config says what is around a function.
type Config struct {
	// Name shows in errors.
	Name   string
	Device virtio.Device
	Mem    *memory.Guest
	// Vectors delivers interrupts; there are NumVectors of them.
	Vectors pci.VectorBackend
	// Doorbells may be nil: each doorbell write is then an exit.
	Doorbells Doorbells
	// Warn is told why a device failed, the first time that it does, with a
	// *NeedsResetError, and of a doorbell that the hypervisor refused, the first time too. It is
	// called from any goroutine, maybe with locks held: it must not call the
	// function. Nil ignores it.
	Warn func(error)
}

// MaxQueues is how many queues a function has at most: their doorbells share a
// page.
const MaxQueues = memory.PageSize / notifyMultiplier

// NumVectors is how many MSI-X vectors a device gets: one for each queue, and
// one for changes of its configuration.
func NumVectors(d virtio.Device) int { return 1 + len(d.QueueSizes()) }

// Function is a virtio device on the PCI bus. Its methods may be called from
// any goroutine.
type Function struct {
	config  Config
	device  virtio.Device
	pci     *pci.Function
	msix    *pci.MSIX
	offered uint64 // features

	// mu guards what the driver writes, and the calls of the device. It may
	// be taken with the lock of the PCI bus held, not the other way round.
	// A worker of the device never takes it: it would wait for a Stop that
	// waits for the worker.
	mu             sync.Mutex
	features       uint64 // that the driver wrote
	featureSelect  uint32 // device_feature_select
	acceptSelect   uint32 // driver_feature_select
	queueSelect    uint16
	queues         []queue
	running        bool // the device is started
	paused, closed bool
	restored       bool // and not resumed yet
	refusedBell    bool // Warn knows

	// The rest belongs to the workers as well.

	status       atomic.Uint32 // written with mu held; without NEEDS_RESET
	configVector atomic.Uint32
	generation   atomic.Uint32
	isr          atomic.Uint32
	life         atomic.Pointer[life]
	warned       atomic.Bool // of a failure

	stopping sync.WaitGroup // goroutines that stop a failed device
}

// life is the time from one reset to the next.
type life struct {
	err atomic.Pointer[error] // why the device needs a reset, or nil
}

// queue is a virtqueue and its registers.
type queue struct {
	*virtio.Queue
	max    uint16
	config virtio.QueueConfig
	vector atomic.Uint32
	// bell says that the hypervisor signals the eventfd by itself.
	bell bool
}

// noVector is VIRTIO_MSI_NO_VECTOR (§4.1.4.3).
const noVector = 0xffff

// New makes a function. It is not on a bus yet. Close frees it; the device is
// the caller's.
func New(c Config) (*Function, error) {
	sizes := c.Device.QueueSizes()
	if len(sizes) > MaxQueues {
		return nil, fmt.Errorf("virtio device %s has %d queues, the limit is %d", c.Name, len(sizes), MaxQueues)
	}
	f := &Function{config: c, device: c.Device, offered: c.Device.Features() | virtio.TransportFeatures}
	f.queues = make([]queue, len(sizes))
	for i, size := range sizes {
		if size == 0 || size&(size-1) != 0 || size > virtio.MaxQueueSize {
			return nil, errors.Join(fmt.Errorf("virtio device %s: queue %d has %d descriptors, want a power of two up to %d",
				c.Name, i, size, virtio.MaxQueueSize), f.Close())
		}
		q, err := virtio.NewQueue(c.Mem, func() { f.interruptQueue(i) })
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		f.queues[i].Queue, f.queues[i].max = q, size
	}
	f.clear()
	if err := f.addToPCI(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// PCI is the function to be added to a bus.
func (f *Function) PCI() *pci.Function { return f.pci }

// Err is why the device waits for a reset by the driver, or nil.
func (f *Function) Err() error {
	if err := f.life.Load().err.Load(); err != nil {
		return *err
	}
	return nil
}

// Close stops the device and frees the queues. No processor of the guest runs
// any more. Doorbells stay with the hypervisor until it frees the VM.
func (f *Function) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	f.closed = true
	f.stop()
	f.mu.Unlock()
	f.stopping.Wait()
	var errs []error
	for i := range f.queues {
		if q := f.queues[i].Queue; q != nil {
			errs = append(errs, q.Close())
		}
	}
	return errors.Join(errs...)
}
