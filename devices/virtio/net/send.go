package net

import (
	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/net/pcap"
)

// sender takes frames from the guest to the back end.
type sender struct {
	worker
	chain   virtio.Chain
	vectors [virtio.MaxChain]unix.Iovec
	// paid is set when the limits know of the frame that is next, which could
	// not go out then.
	paid bool
	// polled is set when the loop waits for room in the back end, and has
	// polled it before.
	polled bool
	spin   spin

	capture []byte // the frame to be captured
}

func (s *sender) start(driver *virtio.Driver, q *virtio.Queue) error {
	s.paid, s.polled, s.spin = false, false, newSpin()
	return s.worker.start(driver, q, s.run)
}

// run sends frames until there are none, or the back end has no room, or a
// limit is reached. It is called again when one of that has changed.
func (s *sender) run() {
	if s.failed {
		return
	}
	s.spin.woken()
	s.queue.DisableKicks()
	for n := 0; ; n++ {
		if n == budget {
			s.queue.Kick() // to go on
			break
		}
		if n%batch == batch-1 {
			s.queue.Notify()
		}
		if !s.next() || !s.step() {
			break
		}
	}
	s.queue.Notify()
}

// next takes a frame from the queue. If there is none, it waits a little and
// then asks for a kick.
func (s *sender) next() bool {
	ok, err := s.queue.Pop(&s.chain)
	if err == nil && !ok {
		s.queue.Notify()
		ok, err = s.spin.pop(s.queue, &s.chain)
	}
	for err == nil && !ok {
		var more bool
		if more, err = s.queue.EnableKicks(); err == nil && !more {
			s.spin.sleeps()
			return false
		}
		s.queue.DisableKicks()
		ok, err = s.queue.Pop(&s.chain)
	}
	if err != nil {
		s.fail(err)
	}
	return err == nil
}

// step sends the frame that next took, or drops it. It returns false if it can
// only go out later.
func (s *sender) step() bool {
	c := &s.chain
	if c.ReadLen < headerSize+ethernetHeader || c.ReadLen > maxFrame {
		s.done(false)
		return true
	}
	size := uint64(c.ReadLen - headerSize)
	if !s.paid {
		if wait := s.limiter.Take(size, 1); wait > 0 {
			s.queue.Unpop()
			s.timer.Set(wait)
			return false
		}
	}
	if s.device.config.Capture != nil && !s.paid {
		s.record()
	}
	setVectors(s.vectors[:], c.Read)
	_, errno := writev(s.fd, s.vectors[:len(c.Read)])
	switch errno {
	case 0:
	case unix.EINTR:
		s.paid = true
		s.queue.Unpop()
		return true
	case unix.EAGAIN:
		s.paid = true
		s.queue.Unpop()
		s.awaitRoom()
		return false
	default:
		s.refused(errno)
	}
	s.done(errno == 0)
	return true
}

// done gives the frame back to the driver.
func (s *sender) done(sent bool) {
	if sent {
		s.counts.frames.Add(1)
		s.counts.bytes.Add(uint64(s.chain.ReadLen - headerSize))
	} else {
		s.counts.dropped.Add(1)
	}
	s.paid = false
	s.queue.Push(s.chain.Head, 0)
}

// refused sees to an error of the back end about a frame, which is lost. Most
// of them are about what is wrong with it.
func (s *sender) refused(errno unix.Errno) {
	switch errno {
	case unix.EPIPE, unix.ECONNRESET:
		s.device.lose(errno)
	case unix.EIO:
		s.device.warnings.add(warnDown, errDown)
	}
}

// awaitRoom makes the loop call run when the back end takes frames again. The
// wait is for one event: an interest that stays would wake the loop whenever
// the other side takes a frame.
func (s *sender) awaitRoom() {
	events := uint32(unix.EPOLLOUT | unix.EPOLLONESHOT)
	var err error
	if s.polled {
		err = s.loop.Modify(s.fd, events)
	} else {
		err = s.loop.Add(s.fd, events, func(uint32) { s.run() })
		s.polled = true
	}
	if err != nil {
		s.device.warnings.add(warnRoom, err)
	}
}

// record captures the frame.
func (s *sender) record() {
	if cap(s.capture) < maxFrame {
		s.capture = make([]byte, maxFrame)
	}
	p := s.capture[:s.chain.ReadLen]
	s.chain.CopyOut(0, p)
	if err := s.device.config.Capture.Write(pcap.Out, p[headerSize:]); err != nil {
		s.device.warnings.add(warnCapture, err)
	}
}
