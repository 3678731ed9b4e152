// Package virtiotest is the driver's side of a virtio device, for tests of
// devices without a guest: it lays queues out in guest memory, puts requests
// into them, and stands in for the transport.
//
//	d := virtiotest.Start(t, device, virtiotest.Options{})
//	in, n := d.Queues[0].Do([][]byte{request}, 512)
//
// The helpers fail the test when something goes wrong that the device cannot be
// blamed for, and when the device does not answer within Patience.
package virtiotest

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

// Patience is how long the helpers wait for a device before they fail the test.
const Patience = 20 * time.Second

// Options say how a driver sets a device up. The zero value accepts all
// features and enables all queues.
type Options struct {
	// Memory is the guest's; nil is a new one of 64 MiB.
	Memory *Memory
	// Without are features that the driver does not accept.
	Without uint64
	// QueueSize is the size of the queues that allow as many descriptors;
	// 0 is the largest that each allows.
	QueueSize uint16
	// Skip has the queues that the driver does not enable.
	Skip map[int]bool
}

// Driver is a started device and the driver's side of it.
type Driver struct {
	Memory *Memory
	// Features are those that were accepted.
	Features uint64
	// Queues has an entry for each queue of the device, nil for those that
	// are not enabled.
	Queues []*Queue
	// ConfigChanged gets a value when the device says that its
	// configuration has changed. It holds one: changes that come before it
	// is read are one change.
	ConfigChanged chan struct{}

	t       testing.TB
	device  virtio.Device
	queues  []*virtio.Queue // the device's side
	running bool

	mu       sync.Mutex
	err      error         // of the first Fail
	failed   chan struct{} // closed by the first Fail
	expected bool          // somebody asked for err
}

// Start sets a device up and starts it, as a transport does. At the end of the
// test the device is stopped, and the test fails if the device called Fail and
// nobody asked for the reason by Err or AwaitFail.
func Start(t testing.TB, device virtio.Device, o Options) *Driver {
	t.Helper()
	d := &Driver{
		Memory: o.Memory, Features: (device.Features() | virtio.TransportFeatures) &^ o.Without,
		ConfigChanged: make(chan struct{}, 1), t: t, device: device, failed: make(chan struct{}),
	}
	if d.Memory == nil {
		d.Memory = NewMemory(t, 64<<20)
	}
	t.Cleanup(d.end)
	for i, size := range device.QueueSizes() {
		if o.Skip[i] {
			d.Queues = append(d.Queues, nil)
			d.queues = append(d.queues, nil)
			continue
		}
		if o.QueueSize != 0 {
			size = min(size, o.QueueSize)
		}
		q := NewQueue(t, d.Memory, size)
		d.Queues = append(d.Queues, q)
		d.queues = append(d.queues, d.enable(q, nil))
	}
	d.start()
	return d
}

// enable makes the device's side of a queue, from a saved state if there is one.
func (d *Driver) enable(q *Queue, s *virtio.QueueState) *virtio.Queue {
	d.t.Helper()
	v, err := virtio.NewQueue(d.Memory.Guest, q.Interrupt)
	if err == nil && s == nil {
		err = v.Enable(q.Config(), d.Features)
	} else if err == nil {
		err = v.Restore(*s, d.Features)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	q.Kick = v.Kick
	d.t.Cleanup(func() {
		d.end() // the queues outlive the device
		if err := v.Close(); err != nil {
			d.t.Error(err)
		}
	})
	return v
}

func (d *Driver) start() {
	d.t.Helper()
	d.hold(false)
	err := d.device.Start(virtio.Driver{
		Mem: d.Memory.Guest, Features: d.Features, Queues: d.queues,
		ConfigChanged: func() {
			select {
			case d.ConfigChanged <- struct{}{}:
			default:
			}
		},
		Fail: d.fail,
	})
	if err != nil {
		d.t.Fatalf("start the device: %v", err)
	}
	d.running = true
}

func (d *Driver) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return
	}
	if err == nil {
		err = errors.New("Fail(nil)")
	}
	d.err = err
	close(d.failed)
}

func (d *Driver) end() {
	if !d.running {
		return
	}
	d.Stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil && !d.expected {
		d.t.Errorf("the device failed: %v", d.err)
	}
}

// Err is why the device called Fail, or nil.
func (d *Driver) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.expected = true
	return d.err
}

// AwaitFail waits until the device calls Fail, and returns the reason.
func (d *Driver) AwaitFail() error {
	d.t.Helper()
	select {
	case <-d.failed:
	case <-time.After(Patience):
		d.t.Fatal("the device did not fail")
	}
	return d.Err()
}

// AwaitConfigChange waits until the device says that its configuration has
// changed.
func (d *Driver) AwaitConfigChange() {
	d.t.Helper()
	select {
	case <-d.ConfigChanged:
	case <-d.failed:
		d.t.Fatalf("the device failed before its configuration changed: %v", d.Err())
	case <-time.After(Patience):
		d.t.Fatal("the configuration of the device did not change")
	}
}

// Stop stops the device, as when a machine is paused.
func (d *Driver) Stop() {
	if d.running {
		d.hold(true)
		d.device.Stop()
		d.running = false
	}
}

// hold keeps requests from the device or lets it have them.
func (d *Driver) hold(held bool) {
	for _, q := range d.queues {
		if q != nil {
			q.Hold(held)
		}
	}
}

// Resume starts the stopped device with the same queues.
func (d *Driver) Resume() {
	d.t.Helper()
	if !d.running {
		d.start()
	}
}

// Move stops the device and starts another one in its place, as a migration
// does: the queues are saved and restored in between. The caller has restored
// the other one's state from that of the first; prepare does it if it is not
// nil, while both are stopped.
func (d *Driver) Move(to virtio.Device, prepare func()) {
	d.t.Helper()
	d.Stop()
	if prepare != nil {
		prepare()
	}
	d.device = to
	for i, q := range d.Queues {
		if q != nil {
			s := d.queues[i].Save()
			d.queues[i] = d.enable(q, &s)
		}
	}
	d.start()
}

// Reset stops the device, resets it and starts it with its queues empty, as a
// driver does after a failure.
func (d *Driver) Reset() {
	d.t.Helper()
	d.Stop()
	d.device.Reset()
	d.mu.Lock()
	if d.err != nil {
		d.err, d.failed, d.expected = nil, make(chan struct{}), false
	}
	d.mu.Unlock()
	for i, q := range d.Queues {
		if q == nil {
			continue
		}
		q.Clear()
		if err := d.queues[i].Enable(q.Config(), d.Features); err != nil {
			d.t.Fatal(err)
		}
	}
	d.start()
}

// Config reads n bytes of the device configuration space.
func (d *Driver) Config(offset uint64, n int) []byte {
	p := make([]byte, n)
	d.device.ReadConfig(offset, p)
	return p
}

// Device is the device's side of a queue, for tests that serve it by hand while
// the device is stopped. The queue is held then.
func (d *Driver) Device(queue int) *virtio.Queue { return d.queues[queue] }
