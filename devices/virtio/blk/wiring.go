package blk

import (
	"fmt"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

// Start begins to serve the queues that the driver has enabled.
func (d *Device) Start(driver virtio.Driver) error {
	d.failed.Store(false)
	for i, q := range driver.Queues {
		if q == nil {
			continue
		}
		if err := d.services[i].start(driver, q); err != nil {
			d.Stop()
			return fmt.Errorf("disk %s: %w", d.config.Path, err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.driver = &driver
	d.tellSize()
	return nil
}

// Stop ends the service when the requests that were taken are completed.
func (d *Device) Stop() {
	d.mu.Lock()
	d.driver = nil
	d.mu.Unlock()
	for _, s := range d.services {
		s.stop()
	}
}

// Reset forgets the cache mode that the driver chose.
func (d *Device) Reset() {
	d.writeback.Store(true)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resized = false // the next driver asks for the size first
}
