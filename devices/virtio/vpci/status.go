package vpci

import (
	"fmt"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

// Bits of the device status (§2.1).
const (
	statusAcknowledge = 1
	statusDriver      = 2
	statusDriverOK    = 4
	statusFeaturesOK  = 8
	statusNeedsReset  = 64
	statusFailed      = 128

	// statusOfDriver are those that the driver sets.
	statusOfDriver = statusAcknowledge | statusDriver | statusDriverOK | statusFeaturesOK | statusFailed
)

// readStatus is the register as the driver sees it.
func (f *Function) readStatus() uint32 {
	s := f.status.Load()
	if f.Err() != nil {
		s |= statusNeedsReset
	}
	return s
}

// writeFeatures takes half of the features that the driver accepts, until they
// are settled (§2.2.1).
func (f *Function) writeFeatures(x uint64) {
	if f.acceptSelect > 1 || f.status.Load()&statusFeaturesOK != 0 {
		return
	}
	shift := 32 * f.acceptSelect
	f.features = f.features&^(0xffff_ffff<<shift) | x<<shift
}

// writeStatus is a step of the initialization (§3.1.1), or a reset. A driver
// can set bits but clear none: only a reset does.
func (f *Function) writeStatus(x uint64) {
	if x == 0 {
		f.reset()
		return
	}
	old := f.status.Load()
	s := old | uint32(x)&statusOfDriver
	// FEATURES_OK stays off if the device cannot work with the features; the
	// driver reads it back (§2.2.2).
	if s&statusDriver == 0 || !f.acceptable(f.features) {
		s = s&^statusFeaturesOK | old&statusFeaturesOK
	}
	if s&statusFeaturesOK == 0 {
		s &^= statusDriverOK
	}
	f.status.Store(s)
	if s&statusFailed != 0 {
		f.stop() // the driver has given up
	}
	f.start()
}

// acceptable tells whether the device works with the features: all of them were
// offered, and the driver is none for devices before the standard (§6.1).
func (f *Function) acceptable(features uint64) bool {
	return features&^f.offered == 0 && features&virtio.FeatureVersion1 != 0
}

// start starts the device if all is as it must be, which may be so already.
func (f *Function) start() {
	ready := f.status.Load()&(statusDriverOK|statusFailed) == statusDriverOK && f.Err() == nil
	if !ready || f.running || f.paused || f.closed {
		return
	}
	life := f.life.Load()
	queues := make([]*virtio.Queue, len(f.queues))
	for i := range f.queues {
		if q := &f.queues[i]; q.Enabled() {
			q.Hold(false)
			queues[i] = q.Queue
		}
	}
	f.running = true
	err := f.device.Start(virtio.Driver{
		Mem:           f.config.Mem,
		Features:      f.features,
		Queues:        queues,
		ConfigChanged: f.configChanged,
		Fail:          func(err error) { f.fail(life, err) },
	})
	if err != nil {
		f.fail(life, err)
	}
}

// stop stops the device. What is in its hands is completed, what is in the
// queues stays there.
func (f *Function) stop() {
	if !f.running {
		return
	}
	f.running = false
	for i := range f.queues {
		f.queues[i].Hold(true)
	}
	f.device.Stop()
}

// reset is what the driver asks for by writing 0 to the status (§2.4). The
// register reads 0 when it is done, which is before the write is over.
func (f *Function) reset() {
	f.stop()
	f.device.Reset()
	f.clear()
}

// clear brings the registers to what they are at power on. The configuration
// generation goes on: no driver can tell, and it cannot repeat itself early.
func (f *Function) clear() {
	f.status.Store(0)
	f.life.Store(new(life))
	f.features, f.featureSelect, f.acceptSelect, f.queueSelect = 0, 0, 0, 0
	f.configVector.Store(noVector)
	f.isr.Store(0)
	for i := range f.queues {
		q := &f.queues[i]
		q.Disable()
		q.config = virtio.QueueConfig{Size: q.max}
		q.vector.Store(noVector)
	}
}

// NeedsResetError says why a device does nothing until the driver resets it
// (DEVICE_NEEDS_RESET, §2.1.2).
type NeedsResetError struct {
	// Device is Config.Name.
	Device string
	Err    error
}

// Error names the device and the reason.
func (e *NeedsResetError) Error() string { return fmt.Sprintf("virtio device %s: %v", e.Device, e.Err) }

// Unwrap returns the reason.
func (e *NeedsResetError) Unwrap() error { return e.Err }

// fail takes the device out of service until the end of its life (§2.1.2). It
// is called by workers of the device, and also with the lock held.
func (f *Function) fail(l *life, err error) {
	if err == nil {
		err = fmt.Errorf("no reason given")
	}
	err = &NeedsResetError{Device: f.config.Name, Err: err}
	if f.life.Load() != l || !l.err.CompareAndSwap(nil, &err) {
		return
	}
	// A worker cannot wait for its own end. Other queues of the device must
	// not go on either.
	f.stopping.Go(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.life.Load() == l {
			f.stop()
		}
	})
	if f.config.Warn != nil && !f.warned.Swap(true) {
		f.config.Warn(err)
	}
	if f.status.Load()&statusDriverOK != 0 {
		f.interruptConfig()
	}
}

// Pause stops the device until Resume. The processors of the guest are stopped
// already. When it returns, nothing of the device touches guest memory.
func (f *Function) Pause() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paused = true
	f.stop()
}

// Resume starts the device again if it was running, or would have been: one that
// failed stays so.
func (f *Function) Resume() {
	f.mu.Lock()
	defer f.mu.Unlock()
	was := f.paused
	f.paused = false
	f.start()
	if was && f.running {
		// The host may have changed the configuration meanwhile, of which a
		// stopped device cannot tell the driver. Looking once in vain does
		// no harm.
		f.configChanged()
	}
	if f.restored {
		f.restored = false
		f.interruptAll()
	}
}
