package balloon

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

// The virtqueues (§5.5.2). Reporting has the last one; but drivers from before
// 2024 leave no gaps for the queues of features that are off, and then it comes
// earlier: see service.role.
const (
	queueInflate = iota
	queueDeflate
	queueStats
	queueFreePages // of a feature that is not offered
	queueReporting
	queues
)

const (
	// queueSize is plenty: Linux has one request at a time in each queue.
	queueSize = 128
	// maxPFNs bounds the page numbers in one request, of which Linux sends
	// up to 256, so that one request does not take long.
	maxPFNs = 4096
	// maxTurn is how many requests are served before the other queues, and
	// a Stop, get their turn.
	maxTurn = 16
)

// What a driver may not send.
var (
	errWritable  = errors.New("balloon: a request with a buffer for the device to write")
	errReadable  = errors.New("balloon: a report of free pages with a buffer for the device to read")
	errPFNLength = fmt.Errorf("balloon: a request is not of 1 to %d page numbers of 4 bytes", maxPFNs)
)

// QueueSizes are those of the five queues that the specification numbers.
func (d *Device) QueueSizes() []uint16 { return slices.Repeat([]uint16{queueSize}, queues) }

// service is a balloon between Start and Stop. All of it but driver belongs to
// the loop's goroutine.
type service struct {
	device *Device
	driver virtio.Driver
	loop   *virtio.Loop
	timer  int // timerfd of the statistics
	failed bool

	chain virtio.Chain
	pfns  []uint32
	raw   [maxPFNs * 4]byte

	stats     *virtio.Queue // nil if there is none
	statsHead uint16        // the chain that waits in the device until statistics are wanted
	statsHeld bool          // there is one
}

// Start begins to serve the queues.
func (d *Device) Start(driver virtio.Driver) error {
	s := &service{device: d, driver: driver, timer: -1, pfns: make([]uint32, 0, maxPFNs)}
	if err := s.open(); err != nil {
		return errors.Join(fmt.Errorf("balloon: %w", err), s.close())
	}
	d.mu.Lock()
	d.service = s
	err := s.setTimer(d.interval)
	d.mu.Unlock()
	if err != nil {
		d.Stop()
		return fmt.Errorf("balloon: %w", err)
	}
	for _, q := range driver.Queues {
		if q != nil {
			q.Kick()
		}
	}
	s.loop.Start()
	return nil
}

// Stop ends the service.
func (d *Device) Stop() {
	d.mu.Lock()
	s := d.service
	d.service = nil
	d.mu.Unlock()
	if s == nil {
		return
	}
	s.loop.Stop()
	if s.statsHeld {
		// It is taken again after the next Start.
		s.stats.Unpop()
	}
	if err := s.close(); err != nil {
		d.warn(err)
	}
}

func (s *service) open() error {
	var err error
	if s.loop, err = virtio.NewLoop(); err != nil {
		return err
	}
	if s.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return fmt.Errorf("timer of the statistics: %w", err)
	}
	errs := []error{s.loop.Add(s.timer, unix.EPOLLIN, func(uint32) { s.tick() })}
	for i, q := range s.driver.Queues {
		if q == nil {
			continue
		}
		if serve := s.role(i, q); serve != nil {
			errs = append(errs, s.loop.AddQueue(q, func() { s.serve(q, serve) }))
		}
	}
	return errors.Join(errs...)
}

func (s *service) close() error {
	var errs []error
	if s.timer >= 0 {
		errs = append(errs, unix.Close(s.timer))
	}
	if s.loop != nil {
		errs = append(errs, s.loop.Close())
	}
	return errors.Join(errs...)
}

// role is what a queue does with a request, nil if it is for nothing.
func (s *service) role(i int, q *virtio.Queue) func(q *virtio.Queue) error {
	switch {
	case i == queueInflate:
		return s.inflate
	case i == queueDeflate:
		return s.deflate
	case i == queueStats && s.driver.Has(featureStats):
		s.stats = q
		return s.takeStats
	case s.driver.Has(featureReporting):
		return s.report
	}
	return nil
}

// serve gives the requests in a queue to do, which pushes them back.
func (s *service) serve(q *virtio.Queue, do func(*virtio.Queue) error) {
	if s.failed {
		return
	}
	if err := s.serveTurn(q, do); err != nil {
		s.failed = true
		s.driver.Fail(err)
	}
}

func (s *service) serveTurn(q *virtio.Queue, do func(*virtio.Queue) error) error {
	q.DisableKicks()
	for range maxTurn {
		ok, err := q.Pop(&s.chain)
		if err != nil {
			return err
		}
		if ok {
			if err := do(q); err != nil {
				return err
			}
			continue
		}
		q.Notify()
		if more, err := q.EnableKicks(); err != nil || !more {
			return err
		}
	}
	q.Notify()
	q.Kick()
	return nil
}

// inflate takes pages that the guest gives up.
func (s *service) inflate(q *virtio.Queue) error {
	if err := s.readPFNs(); err != nil {
		return err
	}
	// Sorted, they make as few runs as there can be: Linux gives up 256
	// pages at a time, which often lie side by side in falling order.
	slices.Sort(s.pfns)
	s.device.giveUp(s.pfns, s.driver.Has(featureMustTellHost))
	q.Push(s.chain.Head, 0)
	return nil
}

// deflate gives pages back to the guest.
func (s *service) deflate(q *virtio.Queue) error {
	if err := s.readPFNs(); err != nil {
		return err
	}
	if err := s.device.takeBack(s.pfns); err != nil {
		return err
	}
	q.Push(s.chain.Head, 0)
	return nil
}

// readPFNs reads the page numbers of a request.
func (s *service) readPFNs() error {
	n := s.chain.ReadLen
	switch {
	case len(s.chain.Write) > 0:
		return errWritable
	case n == 0 || n%4 != 0 || n > maxPFNs*4:
		return errPFNLength
	}
	raw := s.raw[:s.chain.CopyOut(0, s.raw[:n])]
	s.pfns = s.pfns[:0]
	for i := 0; i < len(raw); i += 4 {
		s.pfns = append(s.pfns, binary.LittleEndian.Uint32(raw[i:]))
	}
	return nil
}

// report gives memory to the host that is free in the guest until it is told
// that the report has been used (§5.5.6.7).
func (s *service) report(q *virtio.Queue) error {
	if len(s.chain.Read) > 0 {
		return errReadable
	}
	s.device.discardReported(s.chain.Write, s.driver.Has(featurePagePoison))
	// Nothing was written in the sense of the queue.
	q.Push(s.chain.Head, 0)
	return nil
}

// tick asks the guest for statistics.
func (s *service) tick() {
	var expirations [8]byte
	// The one error is EAGAIN, when the timer was set anew meanwhile.
	_, _ = unix.Read(s.timer, expirations[:])
	if s.statsHeld && !s.failed {
		s.statsHeld = false
		s.stats.Push(s.statsHead, 0)
		s.stats.Notify()
	}
}

// takeStats takes the guest's answer, and keeps the buffer until the next time:
// giving it back is the question (§5.5.6.3).
func (s *service) takeStats(q *virtio.Queue) error {
	if len(s.chain.Write) > 0 {
		return errWritable
	}
	n := s.chain.CopyOut(0, s.raw[:maxStats*statSize])
	s.device.setStats(parseStats(s.raw[:n]))
	if s.statsHeld {
		// A driver has one buffer here. The older one of two goes back.
		q.Push(s.statsHead, 0)
	}
	s.statsHead, s.statsHeld = s.chain.Head, true
	return nil
}

// setTimer has tick called every so often, or never for 0.
func (s *service) setTimer(interval time.Duration) error {
	t := unix.NsecToTimespec(int64(interval))
	if err := unix.TimerfdSettime(s.timer, 0, &unix.ItimerSpec{Interval: t, Value: t}, nil); err != nil {
		return fmt.Errorf("timer of the statistics: %w", err)
	}
	return nil
}

// giveUp marks pages as given up and discards them. The numbers are the guest's
// and sorted; those that are not RAM are ignored, as are those that come twice.
// whole says that huge pages may be discarded when all of their pages are there.
func (d *Device) giveUp(pfns []uint32, whole bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := 0; i < len(pfns); {
		page, ok := d.given.index(addressOf(pfns[i]))
		if !ok {
			i++
			continue
		}
		n := d.giveUpRun(pfns[i:], page)
		first := addressOf(pfns[i])
		last := addressOf(pfns[i+n-1])
		i += n
		switch {
		case !d.hugePages():
			d.discard(first, uint64(last-first)+PageSize)
		case whole:
			d.discardWhole(first, last)
		}
	}
}

// giveUpRun marks the page of the first number, whose bit is given, and those of
// the numbers behind it as long as they follow each other. It returns how many.
func (d *Device) giveUpRun(pfns []uint32, page uint64) int {
	d.given.set(page)
	for i := 1; i < len(pfns); i++ {
		switch pfns[i] - pfns[i-1] {
		case 0:
		case 1:
			next, ok := d.given.index(addressOf(pfns[i]))
			if !ok {
				return i
			}
			d.given.set(next)
		default:
			return i
		}
	}
	return len(pfns)
}

func addressOf(pfn uint32) memory.GPA { return memory.GPA(pfn) * PageSize }

// discardWhole discards the huge pages from the one around first to the one
// around last all of whose pages were given up.
func (d *Device) discardWhole(first, last memory.GPA) {
	size := memory.GPA(d.config.Mem.HostPageSize())
	for at := first &^ (size - 1); at <= last; at += size {
		page, ok := d.given.index(at)
		if ok && d.given.hasAll(page, uint64(size)/PageSize) {
			d.discard(at, uint64(size))
		}
	}
}

func (d *Device) discard(gpa memory.GPA, n uint64) uint64 {
	freed, err := d.config.Mem.Discard(gpa, n)
	if err != nil {
		d.warn(err)
	}
	return freed
}

// takeBack marks pages as no longer given up. A huge page is there when it
// returns; the guest has waited for that.
func (d *Device) takeBack(pfns []uint32) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	size := memory.GPA(d.config.Mem.HostPageSize())
	populated := ^memory.GPA(0)
	for _, pfn := range pfns {
		page, ok := d.given.index(addressOf(pfn))
		if !ok {
			continue
		}
		d.given.clear(page)
		huge := addressOf(pfn) &^ (size - 1)
		if !d.hugePages() || huge == populated {
			continue
		}
		if err := d.config.Mem.Populate(huge, uint64(size)); err != nil {
			return fmt.Errorf("balloon: the guest wants a huge page back, and the host has none left: %w", err)
		}
		populated = huge
	}
	return nil
}

// discardReported discards free memory of the guest. What is not RAM is ignored.
func (d *Device) discardReported(buffers []virtio.Buffer, poisoned bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if poisoned && d.field(configPoison) != 0 {
		// The guest wants to find what it filled free pages with, and
		// would find zeros (§5.5.6.7.2).
		return
	}
	for _, b := range buffers {
		d.reported += d.discard(b.GPA, uint64(len(b.Data)))
	}
}
