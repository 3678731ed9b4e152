package blk

import (
	"errors"
	"fmt"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

type gpa = memory.GPA

// Costs and limits of the service, in bytes.
const (
	// requestCost is what a request counts in addition to its data.
	requestCost = 4 << 10
	// turnCost is how much is done before other events have their turn: it
	// bounds how long Stop waits.
	turnCost = 16 << 20
	// notifyCost is after how much the driver hears of what is done, while
	// there is more to do.
	notifyCost = 256 << 10
	// maxHandedOver is how much data, or how much of the image, is with pool
	// and ring when no more is taken: it bounds how long Stop waits for the
	// disk.
	maxHandedOver = 64 << 20
)

// service serves one queue on a loop of its own. All of it but the pool's
// workers runs on the goroutine of the loop, or after that has ended.
type service struct {
	device *Device
	timer  *limit.Timer
	pool   *pool
	ring   *ring // nil if the host has none

	loop     *virtio.Loop
	queue    *virtio.Queue
	driver   virtio.Driver
	requests []request
	free     []*request
	finished []outcome
	pace     pace
	poller   virtio.Poller
	ready    func() bool // hasWork, as a value that is made once

	// handedOver is the extent of what is with pool and ring, inFlight how many
	// requests.
	handedOver uint64
	inFlight   int
	// unnotified is the cost of what was pushed without a Notify.
	unnotified uint64
	// spent is the cost of what was done in this turn.
	spent uint64
	// waiting is set while the limits forbid to go on.
	waiting bool

	counts [workZeroes + 1]counts // by work
}

func newService(d *Device) (_ *service, err error) {
	s := &service{device: d}
	s.ready = s.hasWork
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.pool, err = newPool(QueueSize); err != nil {
		return nil, err
	}
	if d.config.engine != enginePool {
		s.ring, err = newRing(QueueSize)
		if err != nil && (d.config.engine == engineRing || !errors.Is(err, errNoRing)) {
			return nil, err
		}
	}
	s.timer, err = limit.NewTimer()
	return s, err
}

func (s *service) close() error {
	var err error
	if s.pool != nil {
		err = s.pool.close()
	}
	if s.ring != nil {
		err = errors.Join(err, s.ring.close())
	}
	if s.timer != nil {
		err = errors.Join(err, s.timer.Close())
	}
	return err
}

// start begins to serve a queue.
func (s *service) start(driver virtio.Driver, q *virtio.Queue) error {
	loop, err := virtio.NewLoop()
	if err != nil {
		return err
	}
	s.queue, s.driver = q, driver
	s.waiting, s.poller = false, virtio.Poller{}
	s.allocate(q.Size())
	served := func(uint32) { s.serve() }
	err = errors.Join(
		loop.AddQueue(q, s.serve),
		loop.Add(s.pool.event, unix.EPOLLIN|unix.EPOLLET, served),
		loop.Add(s.timer.FD(), unix.EPOLLIN|unix.EPOLLET, func(uint32) { s.waiting = false; s.serve() }),
	)
	if s.ring != nil {
		err = errors.Join(err, loop.Add(s.ring.fd, unix.EPOLLIN|unix.EPOLLET, served))
	}
	if err != nil {
		return errors.Join(err, loop.Close())
	}
	s.loop = loop
	q.Kick()
	loop.Start()
	return nil
}

// allocate makes room for as many requests as the queue has descriptors: more
// are never in flight.
func (s *service) allocate(n int) {
	if len(s.requests) == n {
		return
	}
	s.requests = make([]request, n)
	s.free = make([]*request, 0, n)
	s.finished = make([]outcome, 0, n)
	for i := range s.requests {
		r := &s.requests[i]
		r.index, r.image, r.overlay = uint32(i), s.device.image, s.device.overlay
		s.free = append(s.free, r)
	}
}

// stop ends the service after the requests in flight.
func (s *service) stop() {
	if s.loop == nil {
		return
	}
	s.loop.Stop()
	for s.inFlight > 0 {
		s.await()
		s.collect()
		s.submit()
	}
	s.queue.Notify()
	// Nothing can be done about descriptors that do not close.
	_ = s.loop.Close()
	s.loop, s.queue, s.driver = nil, nil, virtio.Driver{}
}

// await waits for pool or ring, without the loop.
func (s *service) await() {
	fds := [2]unix.PollFd{{Fd: int32(s.pool.event), Events: unix.POLLIN}, {Fd: -1}}
	if s.ring != nil {
		fds[1] = unix.PollFd{Fd: int32(s.ring.fd), Events: unix.POLLIN}
	}
	// EINTR has the same effect as an event. The eventfd is read, which the
	// loop does not need, so that the next call waits.
	_, _ = unix.Poll(fds[:], -1)
	var count [8]byte
	_, _ = unix.Read(s.pool.event, count[:])
}

// pause is why serving the queue comes to an end.
type pause int

const (
	pauseEmpty pause = iota // there is nothing more in the queue
	pauseFull               // too much is with pool and ring, or all of the queue
	pauseLimit              // the limits say to wait, and the timer is set
	pauseTurn               // others have their turn
)

// serve handles the requests in the queue and what has come back from pool and
// ring, until there is nothing to do.
func (s *service) serve() {
	s.spent = 0
	for !s.device.failed.Load() {
		why, err := s.round()
		if err != nil {
			s.fail(err)
			return
		}
		switch {
		case why == pauseTurn:
			s.queue.Kick()
			return
		case why != pauseEmpty:
			return
		case s.pool.given > 0:
			// The workers need the processor more than a poll does.
		case s.poller.Poll(s.ready):
			continue
		}
		more, err := s.queue.EnableKicks()
		if err != nil {
			s.fail(err)
		}
		if !more {
			return
		}
	}
}

// hasWork tells whether a round would find something.
func (s *service) hasWork() bool {
	return s.queue.Available() || s.pool.ready() || s.ring != nil && s.ring.ready()
}

// fail gives the device up: the driver has broken a queue.
func (s *service) fail(err error) {
	s.device.failed.Store(true)
	s.driver.Fail(fmt.Errorf("disk %s: %w", s.device.config.Path, err))
}

// round takes what is there, once.
func (s *service) round() (pause, error) {
	s.queue.DisableKicks()
	s.collect()
	why, err := s.take()
	s.submit()
	s.queue.Notify()
	s.unnotified = 0
	return why, err
}

// take takes requests from the queue.
func (s *service) take() (pause, error) {
	for {
		switch {
		case s.waiting:
			return pauseLimit, nil
		case s.handedOver >= maxHandedOver, len(s.free) == 0:
			return pauseFull, nil
		case s.spent >= turnCost:
			return pauseTurn, nil
		}
		r := s.free[len(s.free)-1]
		more, err := s.queue.Pop(&r.chain)
		if !more || err != nil {
			return pauseEmpty, err
		}
		if r.chain.WriteLen < statusSize {
			return pauseEmpty, fmt.Errorf("request without a place for its status (§5.2.6): %w", virtio.ErrBroken)
		}
		r.parse(s.device, s.driver.Features)
		if wait := s.device.limiter.Take(r.charge(), 1); wait > 0 {
			s.queue.Unpop()
			s.delay(wait)
			return pauseLimit, nil
		}
		s.free = s.free[:len(s.free)-1]
		s.begin(r)
	}
}

// delay waits for the limits.
func (s *service) delay(wait time.Duration) {
	s.waiting = true
	s.timer.Set(wait)
}

// begin does the work of a request, or hands it over.
func (s *service) begin(r *request) {
	s.spent += requestCost + uint64(r.length)
	r.begun = time.Now()
	switch r.work {
	case workNone:
		s.push(r)
		return
	case workRead, workWrite:
		if done, errno := s.inline(r); done {
			s.complete(r, errno)
			return
		}
	}
	s.inFlight++
	s.handedOver += r.extent
	s.handOver(r)
}

// handOver gives work that may block to ring or pool. Writes into the page cache
// are better off with the pool: the kernel hands them to threads of its own, one
// at a time for each file.
func (s *service) handOver(r *request) {
	if s.ring != nil && (r.work == workRead || r.work == workWrite && r.image.direct >= 0 && r.inPlace()) {
		if m, offset, n := r.place(); n == r.left() {
			s.ring.submit(r, m.descriptor(offset, r.vectors), offset)
			return
		}
	}
	s.pool.submit(r)
}

// submit tells the kernel about the requests in the ring. What it does not take
// goes to the pool.
func (s *service) submit() {
	if s.ring == nil || s.ring.enter() == 0 {
		return
	}
	for {
		index, ok := s.ring.takeBack()
		if !ok {
			return
		}
		s.pool.submit(&s.requests[index])
	}
}

// collect completes what has come back from ring and pool.
func (s *service) collect() {
	s.finished = s.pool.collect(s.finished[:0])
	for _, o := range s.finished {
		s.land(o.r, o.errno)
	}
	if s.ring == nil {
		return
	}
	for {
		index, result, ok := s.ring.next()
		if !ok {
			return
		}
		s.returned(&s.requests[index], result)
	}
}

// returned handles the result of a system call in the ring.
func (s *service) returned(r *request, result int32) {
	switch errno := unix.Errno(-result); {
	case result > 0:
		r.moved(uint32(result))
		if r.left() > 0 {
			s.handOver(r)
			return
		}
		s.land(r, 0)
	case result == 0:
		s.land(r, errShort)
	case errno == unix.EINTR || errno == unix.EAGAIN || errno == unix.ECANCELED:
		// The thread that submitted it has ended, or the kernel wants it
		// in another way.
		s.pool.submit(r)
	default:
		s.land(r, errno)
	}
}

// land completes a request that was handed over.
func (s *service) land(r *request, errno unix.Errno) {
	s.inFlight--
	s.handedOver -= r.extent
	s.complete(r, errno)
}

// complete answers a request whose work is done, or has failed.
func (s *service) complete(r *request, errno unix.Errno) {
	r.status = statusOK
	switch {
	case errno == 0:
	case r.work == workDiscard && cannot(errno):
		s.device.warn("discarding has no effect on this image", errno)
	default:
		s.device.warn(r.work.String(), errno)
		r.status = statusIOError
	}
	s.counts[r.work].add(uint64(r.length), time.Since(r.begun), r.status != statusOK)
	if log := s.device.log.Load(); log != nil {
		log.note(r)
	}
	s.push(r)
}

// push gives a request back to the driver.
func (s *service) push(r *request) {
	s.queue.Push(r.chain.Head, r.finish(s.driver))
	s.free = append(s.free, r)
	s.unnotified += requestCost + uint64(r.length)
	if s.unnotified >= notifyCost {
		s.queue.Notify()
		s.unnotified = 0
	}
}
