package console

import (
	"errors"
	"fmt"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

// The virtqueues (§5.3.2).
const (
	queueReceive = iota
	queueTransmit
	queues
)

const (
	// queueSize is what Linux fills with receive buffers of a page each.
	queueSize = 128
	// maxTurn is how many requests are served before the other queue, and a
	// Stop, get their turn.
	maxTurn = 64
)

// What a driver may not send.
var (
	errWritable = errors.New("console: output with a buffer for the device to write")
	errReadable = errors.New("console: a buffer for input that the device may read only")
)

// QueueSizes are those of the two queues of a port.
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize, queueSize} }

// service is a console between Start and Stop. Its driver and its queues do not
// change; the rest belongs to the loop's goroutine.
type service struct {
	device            *Device
	driver            virtio.Driver
	receive, transmit *virtio.Queue // nil if the driver does not use them
	loop              *virtio.Loop
	chain             virtio.Chain
	sent              uint32 // how much of the first chain in transmit is taken
	failed            bool
	announced         bool // the driver was told to look at the size
}

// Start begins to serve the queues.
func (d *Device) Start(driver virtio.Driver) error {
	loop, err := virtio.NewLoop()
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	s := &service{
		device: d, driver: driver, loop: loop,
		receive: driver.Queues[queueReceive], transmit: driver.Queues[queueTransmit],
	}
	if err := errors.Join(s.add(s.receive, s.serveReceive), s.add(s.transmit, s.serveTransmit)); err != nil {
		return errors.Join(fmt.Errorf("console: %w", err), loop.Close())
	}
	d.mu.Lock()
	s.sent = d.sent
	d.service = s
	d.mu.Unlock()
	loop.Start()
	return nil
}

// Stop ends the service. Output that the guest was told is taken may still be on
// its way to the writer: see Flush.
func (d *Device) Stop() {
	d.mu.Lock()
	s := d.service
	d.service = nil
	d.mu.Unlock()
	if s == nil {
		return
	}
	s.loop.Stop()
	d.mu.Lock()
	d.sent = s.sent
	d.mu.Unlock()
	if err := s.loop.Close(); err != nil {
		d.warn("loop", err)
	}
}

// add has a queue served by a function that tells whether it wants to be called
// again, and kicks it once.
func (s *service) add(q *virtio.Queue, serve func() (again bool, _ error)) error {
	if q == nil {
		return nil
	}
	q.Kick()
	return s.loop.AddQueue(q, func() {
		if s.failed {
			return
		}
		s.announceSize()
		again, err := serve()
		q.Notify()
		switch {
		case err != nil:
			s.failed = true
			s.driver.Fail(err)
		case again:
			q.Kick()
		}
	})
}

// announceSize tells the driver once to look at the size of the terminal: Linux
// looks only when the configuration changes.
func (s *service) announceSize() {
	if !s.announced && s.driver.Has(featureSize) && s.device.hasSize() {
		s.driver.ConfigChanged()
	}
	s.announced = true
}

// pop takes the next chain. If there is none, it asks for a kick when there is one, and
// tells whether the driver has added one meanwhile.
func (s *service) pop(q *virtio.Queue) (ok, again bool, err error) {
	if ok, err = q.Pop(&s.chain); ok || err != nil {
		return ok, false, err
	}
	q.Notify()
	again, err = q.EnableKicks()
	return false, again, err
}

// serveReceive fills buffers of the guest with input, as far as there is both.
// Send kicks the queue when there is more input.
func (s *service) serveReceive() (again bool, _ error) {
	q := s.receive
	q.DisableKicks()
	for range maxTurn {
		if !s.device.hasInput() {
			return false, nil
		}
		if ok, again, err := s.pop(q); err != nil || !ok {
			return again, err
		}
		if len(s.chain.Read) > 0 {
			return false, errReadable
		}
		q.Push(s.chain.Head, s.device.give(&s.chain))
	}
	return true, nil
}

// serveTransmit takes output of the guest, as long as there is room for it. The
// output kicks the queue when there is again. A chain of which only a part is
// taken stays in the queue.
func (s *service) serveTransmit() (again bool, _ error) {
	q := s.transmit
	q.DisableKicks()
	for range maxTurn {
		if ok, again, err := s.pop(q); err != nil || !ok {
			return again, err
		}
		if len(s.chain.Write) > 0 {
			return false, errWritable
		}
		// The guest may have made it shorter meanwhile.
		if s.sent < s.chain.ReadLen {
			s.sent += s.device.out.take(&s.chain, s.sent)
		}
		if s.sent < s.chain.ReadLen {
			q.Unpop()
			return false, nil
		}
		s.sent = 0
		q.Push(s.chain.Head, 0)
	}
	return true, nil
}
