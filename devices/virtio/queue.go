package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

// MaxQueueSize is the largest queue that a device may have (§2.7).
const MaxQueueSize = 32768

// ErrBroken is wrapped by the errors about a driver that breaks the rules of a
// virtqueue.
var ErrBroken = errors.New("the driver broke the virtqueue")

// Layout of the split virtqueue (§2.7): offsets and sizes in bytes.
const (
	descSize      = 16
	availHeader   = 4 // flags, idx
	availElem     = 2
	usedHeader    = 4
	usedElem      = 8
	eventSize     = 2 // used_event behind avail, avail_event behind used
	descAlign     = 16
	availAlign    = 2
	usedAlign     = 4
	availNoIntr   = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT
	usedNoNotify  = 1 // VIRTQ_USED_F_NO_NOTIFY
	descNext      = 1 // VIRTQ_DESC_F_NEXT
	descWrite     = 2 // VIRTQ_DESC_F_WRITE
	descIndirect  = 4 // VIRTQ_DESC_F_INDIRECT
	availIdx      = 2 // offset of idx in both rings
	usedFlagsWord = 0 // the word of flags and idx in the used ring
)

// QueueConfig is how the driver has set up a queue (§4.1.4.3).
type QueueConfig struct {
	Size              uint16
	Desc, Avail, Used memory.GPA
}

// Queue is the device's side of a split virtqueue. Only one goroutine at a
// time uses it, but for EventFD, Kick and Hold.
type Queue struct {
	mem    *memory.Guest
	config QueueConfig
	kick   int // eventfd
	notify func()

	indirect, eventIdx bool

	desc  []byte
	avail ring
	used  ring
	// availSkew is 2 if the avail ring starts in the middle of a word, which
	// avail then starts before.
	availSkew int

	next      uint16 // the avail entry to take next
	nextUsed  uint16 // used.idx
	notified  uint16 // nextUsed at the last Notify
	wrapped   bool   // 2^16 chains or more were pushed since the last Notify
	usedFlags uint16

	held atomic.Bool
}

// NewQueue makes a queue without a place in memory. notify interrupts the
// driver for this queue; it may be called from any goroutine.
func NewQueue(mem *memory.Guest, notify func()) (*Queue, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd of a virtqueue: %w", err)
	}
	return &Queue{mem: mem, kick: fd, notify: notify}, nil
}

// Close frees the eventfd. It is called once, when nobody uses the queue.
func (q *Queue) Close() error { return unix.Close(q.kick) }

// EventFD becomes readable when the driver has put something into the queue.
func (q *Queue) EventFD() int { return q.kick }

// Kick makes EventFD readable, as the driver's notification does.
func (q *Queue) Kick() {
	signal(q.kick)
}

// one is what adds 1 to an eventfd. It is never written to; a local array would
// be allocated for each kick in builds with the race detector.
var one = binary.NativeEndian.AppendUint64(nil, 1)

// signal makes an eventfd readable.
func signal(fd int) {
	// EAGAIN, the only error, says that it has been readable for long.
	_, _ = unix.Write(fd, one)
}

// Hold makes a queue look empty to Pop and EnableKicks while held is true. The
// transport does so before it stops the device: a driver that goes on adding
// chains must not keep the device from coming to the end of them. It may be
// called from any goroutine.
func (q *Queue) Hold(held bool) { q.held.Store(held) }

// Size is the number of descriptors.
func (q *Queue) Size() int { return int(q.config.Size) }

// Enable puts the queue where the driver wants it, with the accepted features,
// as if nothing had gone through it yet. All of it must be RAM.
func (q *Queue) Enable(c QueueConfig, features uint64) error {
	n := uint64(c.Size)
	if n == 0 || n&(n-1) != 0 || n > MaxQueueSize {
		return fmt.Errorf("queue of %d descriptors, want a power of two up to %d: %w", n, MaxQueueSize, ErrBroken)
	}
	if c.Desc%descAlign != 0 || c.Avail%availAlign != 0 || c.Used%usedAlign != 0 {
		return fmt.Errorf("queue at %#x, %#x, %#x is not aligned: %w", uint64(c.Desc), uint64(c.Avail), uint64(c.Used), ErrBroken)
	}
	desc, err := q.mem.View(c.Desc, n*descSize)
	if err != nil {
		return fmt.Errorf("descriptor table: %w: %w", err, ErrBroken)
	}
	// The fields are read as words: up to the next multiple of 4, which is on
	// the same page.
	skew := uint64(c.Avail) % 4
	avail, err := q.mem.View(c.Avail-memory.GPA(skew), roundUp4(skew+availHeader+availElem*n+eventSize))
	if err != nil {
		return fmt.Errorf("avail ring: %w: %w", err, ErrBroken)
	}
	used, err := q.mem.Slice(c.Used, usedHeader+usedElem*n+eventSize)
	if err != nil {
		return fmt.Errorf("used ring: %w: %w", err, ErrBroken)
	}
	q.config = c
	q.desc, q.avail, q.used, q.availSkew = desc, avail, used, int(skew)
	q.indirect = features&FeatureIndirect != 0
	q.eventIdx = features&FeatureEventIdx != 0
	q.next, q.nextUsed, q.notified, q.usedFlags = 0, 0, 0, 0
	q.wrapped = false
	return nil
}

func roundUp4(n uint64) uint64 { return (n + 3) &^ 3 }

// Disable takes the queue from its place.
func (q *Queue) Disable() {
	q.config = QueueConfig{}
	q.desc, q.avail, q.used = nil, nil, nil
}

// Enabled tells whether the queue has a place.
func (q *Queue) Enabled() bool { return q.used != nil }

func (q *Queue) broken(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrBroken)...)
}

// pending is how many chains the driver has made available (§2.7.13.3) that were
// not popped yet. Each chain has a descriptor at least until it is pushed, so
// that no more than the size of the queue are with the device at a time: this
// bounds what a device has in flight.
func (q *Queue) pending() (uint16, error) {
	if q.held.Load() {
		return 0, nil
	}
	index := q.avail.load16(q.availSkew + availIdx)
	n := index - q.next
	if n > q.config.Size || index-q.nextUsed > q.config.Size {
		return 0, q.broken("avail index %d in a queue of %d whose used index is %d, after chain %d", index, q.config.Size, q.nextUsed, q.next)
	}
	return n, nil
}

// Pop takes the next chain from the queue, in the driver's order. It returns
// false if there is none. It does not allocate once c has held a chain as long.
func (q *Queue) Pop(c *Chain) (bool, error) {
	n, err := q.pending()
	if n == 0 || err != nil {
		return false, err
	}
	slot := int(q.next & (q.config.Size - 1))
	head := q.avail.load16(q.availSkew + availHeader + slot*availElem)
	if err := q.walk(c, head); err != nil {
		return false, err
	}
	q.next++
	return true, nil
}

// Unpop puts back the chain that was popped last, to be popped again.
func (q *Queue) Unpop() { q.next-- }

// Push gives a chain back to the driver, of whose writable part the first
// written bytes have been written (§2.7.8). Notify makes the driver look.
func (q *Queue) Push(head uint16, written uint32) {
	q.Fill(head, written)
	// The element is there before the index says so: the store is not moved
	// before earlier ones.
	q.publish()
}

// Fill is Push, but the driver does not see the chain until the next Push: then
// it sees both at once. Chains that belong together need that (§5.1.6.4.1).
func (q *Queue) Fill(head uint16, written uint32) {
	slot := int(q.nextUsed & (q.config.Size - 1))
	off := usedHeader + slot*usedElem
	binary.LittleEndian.PutUint64(q.used[off:off+usedElem], uint64(head)|uint64(written)<<32)
	q.nextUsed++
	if q.nextUsed == q.notified {
		q.wrapped = true
	}
	q.mem.MarkDirty(q.config.Used+memory.GPA(off), usedElem)
}

// publish writes flags and index of the used ring, with a full barrier.
func (q *Queue) publish() {
	q.used.store32(usedFlagsWord, uint32(q.usedFlags)|uint32(q.nextUsed)<<16)
	q.mem.MarkDirty(q.config.Used, usedHeader)
}

// Notify interrupts the driver about what was pushed since the last Notify,
// unless the driver does not want to know (§2.7.7).
func (q *Queue) Notify() {
	if q.wantsInterrupt() {
		q.notify()
	}
}

func (q *Queue) wantsInterrupt() bool {
	old, wrapped := q.notified, q.wrapped
	if q.nextUsed == old && !wrapped {
		return false
	}
	q.notified, q.wrapped = q.nextUsed, false
	if !q.eventIdx {
		return q.avail.load16(q.availSkew)&availNoIntr == 0
	}
	event := q.avail.load16(q.availSkew + availHeader + q.Size()*availElem)
	// §2.7.7.2: whether the index has passed the event since the last time,
	// modulo 2^16. It has passed every event if it went all the way round.
	return wrapped || q.nextUsed-event-1 < q.nextUsed-old
}

// DisableKicks asks the driver not to notify about new chains. It is a hint:
// with EVENT_IDX the driver is silent by itself until EnableKicks.
func (q *Queue) DisableKicks() {
	if q.eventIdx || q.usedFlags&usedNoNotify != 0 {
		return
	}
	q.usedFlags |= usedNoNotify
	q.publish()
}

// EnableKicks asks the driver to notify about the next chain, and tells whether
// there is one already, for which no notification may come (§2.7.10).
func (q *Queue) EnableKicks() (more bool, _ error) {
	if q.eventIdx {
		off := usedHeader + q.Size()*usedElem
		q.used.store16(off, q.next)
		q.mem.MarkDirty(q.config.Used+memory.GPA(off), eventSize)
	} else {
		q.usedFlags &^= usedNoNotify
	}
	// The barrier in it keeps the load below from being moved before the
	// store above.
	q.publish()
	n, err := q.pending()
	return n > 0, err
}

// QueueState is a saved queue of a stopped device.
type QueueState struct {
	Config QueueConfig
	// Next is the avail entry to take next, Used the index of the used ring,
	// Notified what the latter was at the last interrupt, and Flags those of
	// the used ring.
	Next, Used, Notified, Flags uint16
}

// Save returns the state of the queue. That of a disabled one is zero.
func (q *Queue) Save() QueueState {
	if !q.Enabled() {
		return QueueState{}
	}
	return QueueState{q.config, q.next, q.nextUsed, q.notified, q.usedFlags}
}

// Restore enables the queue in a saved state. It does not look at the memory of
// the queue, which may be restored later. The error says what is wrong with the
// state.
func (q *Queue) Restore(s QueueState, features uint64) error {
	q.Disable()
	if s == (QueueState{}) {
		return nil
	}
	if inFlight := s.Next - s.Used; inFlight > s.Config.Size {
		return fmt.Errorf("saved queue of %d descriptors has %d chains in flight", s.Config.Size, inFlight)
	}
	if s.Flags&^usedNoNotify != 0 {
		return fmt.Errorf("saved queue has unknown flags %#x", s.Flags)
	}
	if err := q.Enable(s.Config, features); err != nil {
		return fmt.Errorf("saved queue: %w", err)
	}
	q.next, q.nextUsed, q.notified, q.usedFlags = s.Next, s.Used, s.Notified, s.Flags
	return nil
}
