package micro

import "math/bits"

// Layout of the split virtqueue (§2.7).
const (
	descSize     = 16
	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	ringIdx       = 2 // offset of idx in both rings
	availRing     = 4
	usedRing      = 4
	usedElemShift = 3

	noInterrupt = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT
	noNotify    = 1 // VIRTQ_USED_F_NO_NOTIFY
)

// queue is the driver's side of a split virtqueue.
type queue struct {
	index, size       int
	desc, avail, used uint64

	next   Mem // avail index with what is pushed but not published yet
	shown  Mem // avail index that the device was shown last
	seen   Mem // used index up to which chains were popped
	notify Mem // address of the doorbell
}

// newQueue makes a queue of at least n descriptors. The device will be told not
// to interrupt.
func (d *driver) newQueue(index, n int) *queue {
	size := 1 << bits.Len(uint(n-1))
	q := &queue{
		index: index, size: size,
		desc:  d.alloc(size*descSize, 16),
		avail: d.alloc(availRing+2*size+2, 64),
		used:  d.alloc(usedRing+8*size+2, 64),
		next:  d.variable(), shown: d.variable(), seen: d.variable(), notify: d.variable(),
	}
	d.put16(q.avail, noInterrupt)
	d.put16(q.usedEvent(), farEvent)
	d.queues = append(d.queues, q)
	return q
}

// farEvent, added to an index, is as far from it as can be: with EVENT_IDX,
// where the flag does not count, an event there never comes (§2.7.7).
const farEvent = 1 << 15

// usedEvent and availEvent are the addresses of the fields by which the driver
// and the device say when to be told.
func (q *queue) usedEvent() uint64  { return q.avail + availRing + 2*uint64(q.size) }
func (q *queue) availEvent() uint64 { return q.used + usedRing + uint64(q.size)<<usedElemShift }

// push puts the chain that begins with descriptor head into the avail ring. The
// device sees it after publish. It changes RAX and RCX; head is neither.
func (d *driver) push(q *queue, head Reg) {
	d.Load(Quad, RAX, q.next)
	d.OpImm(And, RAX, int32(q.size-1))
	d.Store(Word, d.element(RCX, RAX, 1, q.avail+availRing), head)
	d.OpMemImm(Add, Quad, q.next, 1)
}

// publish shows the device what was pushed, and rings the doorbell if the
// device wants that. It changes RAX, RCX and RDX.
func (d *driver) publish(q *queue) {
	done := d.NewLabel()
	d.Load(Quad, RDX, q.next)
	d.Load(Quad, RCX, q.shown)
	d.Op(Cmp, RDX, RCX)
	d.Jcc(Equal, done)
	d.Store(Quad, q.shown, RDX)
	d.Store(Word, at(q.avail+ringIdx), RDX)
	// The device sees the index before this processor reads whether to ring
	// (§2.7.13.4).
	d.Mfence()
	switch {
	case d.AlwaysKick:
	case d.EventIdx:
		// §2.7.10: whether the index has passed avail_event.
		d.Load(Word, RAX, at(q.availEvent()))
		d.OpImm(Xor, RAX, -1) // -event - 1
		d.Op(Add, RAX, RDX)
		d.OpImm(And, RAX, 0xffff)
		d.Op(Sub, RDX, RCX) // below the size of the queue
		d.Op(Cmp, RAX, RDX)
		d.Jcc(AboveEqual, done)
	default:
		d.Load(Word, RAX, at(q.used))
		d.TestImm(RAX, noNotify)
		d.Jcc(NotEqual, done)
	}
	d.Load(Quad, RDX, q.notify)
	d.MovImm(RAX, uint64(q.index))
	d.Store(Word, Mem{Base: RDX}, RAX)
	d.OpMemImm(Add, Quad, result(resultKicks), 1)
	d.Bind(done)
}

// pop takes the next chain from the used ring, its head into RAX and the bytes
// written into RCX, or jumps if there is none. It changes RDX.
func (d *driver) pop(q *queue, none Label) {
	d.Load(Word, RAX, at(q.used+ringIdx))
	d.Load(Quad, RDX, q.seen)
	d.Op(Xor, RAX, RDX)
	d.OpImm(And, RAX, 0xffff)
	d.Jcc(Equal, none)
	d.OpMemImm(Add, Quad, q.seen, 1)
	if d.EventIdx {
		d.Lea(RAX, Mem{RDX, farEvent})
		d.Store(Word, at(q.usedEvent()), RAX)
	}
	d.OpImm(And, RDX, int32(q.size-1))
	m := d.element(RCX, RDX, usedElemShift, q.used+usedRing)
	d.Load(Long, RAX, m)
	m.Disp += 4
	d.Load(Long, RCX, m)
}

// buffer is a part of a request.
type buffer struct {
	addr  uint64
	len   int
	write bool // by the device
}

// split is n bytes at addr as buffers of at most size bytes.
func split(addr uint64, n, size int, write bool) []buffer {
	var all []buffer
	for ; n > 0; n -= size {
		all = append(all, buffer{addr, min(n, size), write})
		addr += uint64(size)
	}
	return all
}

// requestSet is a number of chains of which number i has descriptor i of the
// queue as its head, so that a head tells the request.
type requestSet struct {
	*queue
	count, parts int
	indirect     uint64 // the tables, 0 without
	stamps       uint64 // quads: when a request was sent, 0 if it is not in flight
}

// newRequests makes room for count requests of a number of parts each, and for
// spare descriptors behind them.
func (d *driver) newRequests(index, count, parts, spare int) *requestSet {
	s := &requestSet{count: count, parts: parts, stamps: d.alloc(8*count, 8)}
	if d.Indirect {
		s.queue = d.newQueue(index, count+spare)
		s.indirect = d.alloc(count*parts*descSize, 16)
	} else {
		s.queue = d.newQueue(index, count*parts+spare)
	}
	return s
}

// spare is the first descriptor that no request has.
func (s *requestSet) spare() int {
	if s.indirect != 0 {
		return s.count
	}
	return s.count * s.parts
}

// tables is the memory that describes the requests.
func (s *requestSet) tables() (addr uint64, size int) {
	if s.indirect != 0 {
		return s.indirect, s.count * s.parts * descSize
	}
	return s.desc, s.count * s.parts * descSize
}

// send stamps and pushes request RSI. It changes RAX, RCX and RDX.
func (d *driver) send(s *requestSet) {
	d.stampTo(d.element(RCX, RSI, 3, s.stamps))
	d.push(s.queue, RSI)
}

// receive takes back the request with the number in RAX: it leaves the number in
// RSI and the time it took in R11. It changes RAX, RDX and RDI.
func (d *driver) receive(s *requestSet) {
	d.Mov(RSI, RAX)
	d.OpImm(Cmp, RSI, int32(s.count))
	d.failUnless(Below, StatusBadUsed, RSI)
	d.now()
	stamp := d.element(RDI, RSI, 3, s.stamps)
	d.Load(Quad, RDX, stamp)
	d.Test(RDX, RDX)
	d.failUnless(NotEqual, StatusBadUsed, RSI)
	d.StoreImm(Quad, stamp, 0)
	d.Mov(R11, RAX)
	d.Op(Sub, R11, RDX)
}

// pump makes R14 requests and waits for them, with as many in flight as there
// can be. The subroutine prepare sends request RSI, which it keeps; complete
// takes back the one in RAX, of which the device wrote RCX bytes, and leaves its
// number in RSI. R9 counts requests made, R10 those completed.
func (d *driver) pump(s *requestSet, prepare, complete Label) {
	loop, empty, end := d.NewLabel(), d.NewLabel(), d.NewLabel()
	d.MovImm(R9, 0)
	d.MovImm(R10, 0)
	d.MovImm(RSI, 0)
	first := d.Here()
	d.Call(prepare)
	d.Inc(R9)
	d.Inc(RSI)
	d.Op(Cmp, R9, R14)
	d.Jcc(AboveEqual, loop)
	d.OpImm(Cmp, RSI, int32(s.count))
	d.Jcc(Below, first)

	// New requests are published when there is nothing more to complete: one
	// doorbell for all that were completed together.
	d.Bind(loop)
	d.pop(s.queue, empty)
	d.Call(complete)
	d.Inc(R10)
	d.Op(Cmp, R9, R14)
	d.Jcc(AboveEqual, loop)
	d.Call(prepare)
	d.Inc(R9)
	d.Jmp(loop)

	d.Bind(empty)
	d.publish(s.queue)
	d.Op(Cmp, R10, R14)
	d.Jcc(Equal, end)
	d.idle()
	d.Jmp(loop)
	d.Bind(end)
}

// total is how many rounds a number of requests is.
func total(n uint64) uint64 {
	if n == Forever {
		return 1<<64 - 1 // 584 years at one a nanosecond
	}
	return n
}

// describe writes the chain of request i.
func (d *driver) describe(s *requestSet, i int, buffers []buffer) {
	table := s.desc
	place := func(j int) int {
		if j == 0 {
			return i
		}
		return s.count + i*(s.parts-1) + j - 1
	}
	if s.indirect != 0 {
		table = s.indirect + uint64(i*s.parts*descSize)
		place = func(j int) int { return j }
		d.putDescriptor(s.desc, i, buffer{addr: table, len: len(buffers) * descSize}, descIndirect, 0)
	}
	for j, b := range buffers {
		if j < len(buffers)-1 {
			d.putDescriptor(table, place(j), b, descNext, place(j+1))
		} else {
			d.putDescriptor(table, place(j), b, 0, 0)
		}
	}
}

// putDescriptor writes entry i of a descriptor table.
func (m area) putDescriptor(table uint64, i int, b buffer, flags, next int) {
	if b.write {
		flags |= descWrite
	}
	m.put64(table+uint64(i)*descSize, b.addr)
	m.put64(table+uint64(i)*descSize+8, uint64(uint32(b.len))|uint64(flags)<<32|uint64(next)<<48)
}
