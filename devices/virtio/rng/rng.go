// Package rng is the virtio entropy device (§5.4): it fills the buffers of the
// driver with random bytes of the host's kernel. It is the smallest device, and
// the model for the others: this file says what the device is, queue.go how its
// queue is served, and state.go what is saved.
package rng

import (
	"fmt"
	"sync/atomic"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
)

// QueueSize is the size of the only queue, requestq (§5.4.2). Drivers keep one
// or two requests in it.
const QueueSize = 16

// MaxRequest is how many bytes a request gets at most. The driver asks again if
// it wants more; the device may always give less (§5.4.6.1).
const MaxRequest = 64 << 10

// Config says how the device behaves. The zero value has no limits.
type Config struct {
	// Limit bounds how many bytes and requests the guest gets a second.
	Limit limit.Config
}

// Device is the entropy device. Its methods but Close are for the transport.
type Device struct {
	limiter *limit.Limiter
	timer   *limit.Timer

	// Those of Stats.
	requests, bytes atomic.Uint64

	// Between Start and Stop, for the goroutine of the loop.
	loop   *virtio.Loop
	driver virtio.Driver
	queue  *virtio.Queue // nil if it is not enabled, or broken
	chain  virtio.Chain
}

// New makes a device.
func New(c Config) (*Device, error) {
	limiter, err := limit.New(c.Limit, nil)
	if err != nil {
		return nil, fmt.Errorf("rng: %w", err)
	}
	timer, err := limit.NewTimer()
	if err != nil {
		return nil, fmt.Errorf("rng: %w", err)
	}
	return &Device{limiter: limiter, timer: timer}, nil
}

// Close frees the device, which is stopped.
func (d *Device) Close() error { return d.timer.Close() }

// Type is virtio.TypeEntropy.
func (d *Device) Type() virtio.DeviceType { return virtio.TypeEntropy }

// Features are none (§5.4.3).
func (d *Device) Features() uint64 { return 0 }

// QueueSizes has the one queue.
func (d *Device) QueueSizes() []uint16 { return []uint16{QueueSize} }

// ReadConfig reads zeros: there is no configuration (§5.4.4).
func (d *Device) ReadConfig(_ uint64, p []byte) { clear(p) }

// WriteConfig does nothing.
func (d *Device) WriteConfig(uint64, []byte) {}
