package net

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
)

// pair is a receive and a send queue, and the descriptor of the back end that
// goes with them. Each has a loop of its own, so that both directions are
// served at the same time.
type pair struct {
	receive *receiver
	send    *sender
}

func newPair(d *Device, i, fd int, receive, send *limit.Limiter) (pair, error) {
	p := pair{
		&receiver{worker: worker{device: d, pair: i, fd: fd, limiter: receive}},
		&sender{worker: worker{device: d, pair: i, fd: fd, limiter: send}},
	}
	for _, w := range p.workers() {
		var err error
		if w.timer, err = limit.NewTimer(); err != nil {
			return pair{}, errors.Join(err, p.close())
		}
	}
	return p, nil
}

func (p pair) workers() [2]*worker { return [2]*worker{&p.receive.worker, &p.send.worker} }

func (p pair) close() error {
	var err error
	for _, w := range p.workers() {
		if w.timer != nil {
			err = errors.Join(err, w.timer.Close())
		}
	}
	return err
}

// worker is what a receiver and a sender have in common. Its queue and loop are
// there from start to stop.
type worker struct {
	device  *Device
	pair    int
	fd      int // of the back end
	limiter *limit.Limiter
	timer   *limit.Timer
	counts  counts

	driver *virtio.Driver
	queue  *virtio.Queue
	loop   *virtio.Loop
	// failed is set when the device asked for a reset. Nothing is served
	// from then on.
	failed bool
}

// counts of what went through, for anybody to read.
type counts struct {
	frames, bytes, dropped atomic.Uint64
}

// start makes the loop, which calls run when the driver has kicked the queue
// and when a limit allows to go on. It does not start it yet.
func (w *worker) start(driver *virtio.Driver, q *virtio.Queue, run func()) error {
	w.driver, w.queue, w.failed = driver, q, false
	var err error
	if w.loop, err = virtio.NewLoop(); err != nil {
		return err
	}
	if err := w.loop.Add(w.timer.FD(), unix.EPOLLIN|unix.EPOLLET, func(uint32) { run() }); err != nil {
		return err
	}
	if q == nil {
		return nil
	}
	if err := w.loop.AddQueue(q, run); err != nil {
		return err
	}
	// What was there before is served first.
	q.Kick()
	return nil
}

// halt ends the service.
func (w *worker) halt() {
	if w.loop != nil {
		w.loop.Stop()
	}
}

// stop frees what start has made, after halt.
func (w *worker) stop() {
	// An error of close(2) on an epoll means nothing.
	if w.loop != nil {
		_ = w.loop.Close()
	}
	w.loop, w.queue, w.driver = nil, nil, nil
}

// fail takes the device out of service.
func (w *worker) fail(err error) {
	w.failed = true
	w.driver.Fail(err)
}

// Start serves the queues, as the transport asks. The control queue is served
// by the loop of the first send queue.
func (d *Device) Start(driver virtio.Driver) error {
	if err := d.begin(&driver); err != nil {
		d.Stop()
		return fmt.Errorf("network device: %w", err)
	}
	for _, p := range d.pairs {
		p.receive.loop.Start()
		p.send.loop.Start()
	}
	return nil
}

func (d *Device) begin(driver *virtio.Driver) error {
	if err := d.connect(driver); err != nil {
		return err
	}
	known := d.pairsOf(driver)
	for i, p := range d.pairs {
		var receive, send *virtio.Queue
		if i < known {
			receive, send = driver.Queues[2*i], driver.Queues[2*i+1]
		}
		if err := errors.Join(p.receive.start(driver, receive), p.send.start(driver, send)); err != nil {
			return err
		}
	}
	var control *virtio.Queue
	if driver.Has(FeatureControl) {
		control = driver.Queues[2*known]
	}
	return d.control.start(driver, control, d.pairs[0].send.loop)
}

// pairsOf is the number of queue pairs that the driver knows of, behind which
// the control queue is (§5.1.2).
func (d *Device) pairsOf(driver *virtio.Driver) int {
	if driver.Has(FeatureMultiqueue) {
		return len(d.pairs)
	}
	return 1
}

// connect tells the back end what the driver can do. A tap interface that
// others have used, or a new process after a restore, does not know.
func (d *Device) connect(driver *virtio.Driver) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.driver = driver
	d.active = min(d.active, d.pairsOf(driver))
	d.announce = d.announce && driver.Has(FeatureAnnounce)
	d.announceDue = d.announce
	if err := d.applyOffloads(driver); err != nil {
		return err
	}
	return d.config.Backend.SetPairs(d.active)
}

// Stop ends the service. Frames that wait for buffers of the driver are lost.
func (d *Device) Stop() {
	// A command of the driver may concern all pairs: none is taken down
	// before the last loop has ended.
	for _, p := range d.pairs {
		p.receive.halt()
		p.send.halt()
	}
	for _, p := range d.pairs {
		p.receive.stop()
		p.send.stop()
	}
	d.mu.Lock()
	d.driver = nil
	d.mu.Unlock()
	if d.config.Capture != nil {
		if err := d.config.Capture.Flush(); err != nil {
			d.warnings.add(warnCapture, err)
		}
	}
}

// Reset forgets what the driver has set.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mac = d.config.MAC
	d.active = 1
	d.offloads = offloads{}
	d.announce = false
}
