package rng

import (
	"errors"
	"fmt"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"golang.org/x/sys/unix"
)

// Start begins to serve the queue.
func (d *Device) Start(driver virtio.Driver) error {
	loop, err := virtio.NewLoop()
	if err != nil {
		return fmt.Errorf("rng: %w", err)
	}
	d.driver, d.queue = driver, driver.Queues[0]
	if d.queue != nil {
		err = errors.Join(
			loop.AddQueue(d.queue, d.serve),
			loop.Add(d.timer.FD(), unix.EPOLLIN|unix.EPOLLET, func(uint32) { d.serve() }),
		)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("rng: %w", err), loop.Close())
	}
	d.loop = loop
	if d.queue != nil {
		d.queue.Kick()
	}
	loop.Start()
	return nil
}

// Stop ends the service.
func (d *Device) Stop() {
	if d.loop == nil {
		return
	}
	d.loop.Stop()
	// Nothing can be done about descriptors that do not close.
	_ = d.loop.Close()
	d.loop, d.queue, d.driver = nil, nil, virtio.Driver{}
}

// Reset has nothing to forget.
func (d *Device) Reset() {}

// serve answers the requests in the queue until there are none, or until the
// limit says to wait. It runs on the loop.
func (d *Device) serve() {
	for d.queue != nil {
		d.queue.DisableKicks()
		wait, err := d.answer()
		d.queue.Notify()
		if err != nil {
			d.fail(err)
			return
		}
		if wait > 0 {
			d.timer.Set(wait)
			return
		}
		more, err := d.queue.EnableKicks()
		if err != nil {
			d.fail(err)
		}
		if !more {
			return
		}
	}
}

// fail gives the queue up, before the transport gets to stop the device.
func (d *Device) fail(err error) {
	d.queue = nil
	d.driver.Fail(fmt.Errorf("rng: %w", err))
}

// answer answers the requests in the queue. It returns early if the limit asks
// to wait.
func (d *Device) answer() (wait time.Duration, _ error) {
	for {
		more, err := d.queue.Pop(&d.chain)
		if !more || err != nil {
			return 0, err
		}
		if d.chain.ReadLen > 0 || d.chain.WriteLen == 0 {
			return 0, fmt.Errorf("request of %d bytes to read and %d to write, want only the latter (§5.4.6): %w",
				d.chain.ReadLen, d.chain.WriteLen, virtio.ErrBroken)
		}
		n := min(d.chain.WriteLen, MaxRequest)
		if wait := d.limiter.Take(uint64(n), 1); wait > 0 {
			d.queue.Unpop()
			return wait, nil
		}
		if err := d.fill(n); err != nil {
			return 0, err
		}
		d.requests.Add(1)
		d.bytes.Add(uint64(n))
		d.queue.Push(d.chain.Head, n)
	}
}

// fill puts n random bytes into the writable part of the chain.
func (d *Device) fill(n uint32) error {
	left := int(n)
	for _, b := range d.chain.Write {
		for p := b.Data[:min(left, len(b.Data))]; len(p) > 0; {
			// Large reads may be cut short by a signal, which the
			// runtime uses to preempt goroutines.
			got, err := unix.Getrandom(p, 0)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("random bytes of the host: %w", err)
			}
			got = max(got, 0)
			p, left = p[got:], left-got
		}
	}
	d.chain.MarkWritten(n)
	return nil
}
