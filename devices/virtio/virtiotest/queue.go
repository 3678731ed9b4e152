package virtiotest

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/memory"
)

// Flags of a descriptor (§2.7.5) and of the rings (§2.7.6, §2.7.8).
const (
	Next     uint16 = 1
	Write    uint16 = 2
	Indirect uint16 = 4

	NoInterrupt uint16 = 1
	NoNotify    uint16 = 1
)

const descSize = 16

// Buffer is a buffer of a chain.
type Buffer struct {
	GPA   memory.GPA
	Len   uint32
	Write bool // the device writes it
}

// Queue is the driver's side of a virtqueue. One goroutine uses it.
type Queue struct {
	// Size is the number of descriptors.
	Size uint16
	// Desc, Avail and Used are where the parts lie.
	Desc, Avail, Used memory.GPA
	// Kick tells the device to look.
	Kick func()
	// Interrupted gets a value when the device interrupts. It holds one.
	Interrupted chan struct{}

	t    testing.TB
	mem  *Memory
	free []uint16
	// chains has the descriptors of each chain that is in the device's hands
	// or not yet published, by its head.
	chains map[uint16][]uint16
	// seen is the next entry of the used ring.
	seen uint16
	// scratch is memory of former requests of Do, by size.
	scratch map[int][]memory.GPA
}

// NewQueue lays an empty queue out.
func NewQueue(t testing.TB, mem *Memory, size uint16) *Queue {
	t.Helper()
	n := uint64(size)
	q := &Queue{
		Size: size, Kick: func() {}, Interrupted: make(chan struct{}, 1), t: t, mem: mem, scratch: make(map[int][]memory.GPA),
		Desc: mem.Alloc(n*descSize, 16), Avail: mem.Alloc(6+2*n, 2), Used: mem.Alloc(6+8*n, 4),
	}
	q.Clear()
	return q
}

// Clear empties the queue.
func (q *Queue) Clear() {
	n := uint64(q.Size)
	q.mem.Set(q.Desc, make([]byte, n*descSize))
	q.mem.Set(q.Avail, make([]byte, 6+2*n))
	q.mem.Set(q.Used, make([]byte, 6+8*n))
	q.seen = 0
	q.chains = make(map[uint16][]uint16)
	q.free = q.free[:0]
	for i := q.Size; i > 0; i-- {
		q.free = append(q.free, i-1)
	}
	select {
	case <-q.Interrupted:
	default:
	}
}

// Config is what the transport is told about the queue.
func (q *Queue) Config() virtio.QueueConfig {
	return virtio.QueueConfig{Size: q.Size, Desc: q.Desc, Avail: q.Avail, Used: q.Used}
}

// Interrupt is the interrupt of the queue. It may be called from any goroutine.
func (q *Queue) Interrupt() {
	select {
	case q.Interrupted <- struct{}{}:
	default:
	}
}

// SetDescriptor writes descriptor i of the table at the given address, which is
// q.Desc or an indirect one.
func (q *Queue) SetDescriptor(table memory.GPA, i uint16, gpa memory.GPA, length uint32, flags, next uint16) {
	q.t.Helper()
	var d [descSize]byte
	le := binary.LittleEndian
	le.PutUint64(d[:], uint64(gpa))
	le.PutUint32(d[8:], length)
	le.PutUint16(d[12:], flags)
	le.PutUint16(d[14:], next)
	q.mem.Set(table+memory.GPA(i)*descSize, d[:])
}

// Free is the number of free descriptors.
func (q *Queue) Free() int { return len(q.free) }

// Chain makes a chain of descriptors and returns its head. Publish hands it to
// the device.
func (q *Queue) Chain(buffers ...Buffer) uint16 {
	q.t.Helper()
	if len(buffers) == 0 || len(buffers) > len(q.free) {
		q.t.Fatalf("chain of %d descriptors, %d are free", len(buffers), len(q.free))
	}
	at := len(q.free) - len(buffers)
	taken := append([]uint16(nil), q.free[at:]...)
	q.free = q.free[:at]
	for i, b := range buffers {
		var next uint16
		if i+1 < len(taken) {
			next = taken[i+1]
		}
		q.SetDescriptor(q.Desc, taken[i], b.GPA, b.Len, flags(b, i, len(buffers)), next)
	}
	q.chains[taken[0]] = taken
	return taken[0]
}

// IndirectChain makes a chain of one descriptor with an indirect table.
func (q *Queue) IndirectChain(buffers ...Buffer) uint16 {
	q.t.Helper()
	if len(q.free) == 0 {
		q.t.Fatal("no descriptor is free")
	}
	size := uint64(len(buffers)) * descSize
	table := q.mem.Alloc(size, 16)
	for i, b := range buffers {
		q.SetDescriptor(table, uint16(i), b.GPA, b.Len, flags(b, i, len(buffers)), uint16(i+1))
	}
	head := q.free[len(q.free)-1]
	q.free = q.free[:len(q.free)-1]
	q.SetDescriptor(q.Desc, head, table, uint32(size), Indirect, 0)
	q.chains[head] = []uint16{head}
	return head
}

func flags(b Buffer, i, n int) uint16 {
	var f uint16
	if b.Write {
		f |= Write
	}
	if i+1 < n {
		f |= Next
	}
	return f
}

// AvailIndex is the driver's index.
func (q *Queue) AvailIndex() uint16 { return uint16(q.load(q.Avail) >> 16) }

// SetAvailIndex changes the driver's index.
func (q *Queue) SetAvailIndex(i uint16) { q.store(q.Avail, q.load(q.Avail)&0xffff|uint32(i)<<16) }

// SetAvailFlags changes the flags that the driver writes.
func (q *Queue) SetAvailFlags(f uint16) { q.store(q.Avail, q.load(q.Avail)&^0xffff|uint32(f)) }

// SetAvail writes the head in a slot of the ring.
func (q *Queue) SetAvail(slot, head uint16) {
	q.put16(q.Avail+4+2*memory.GPA(slot%q.Size), head)
}

// SetUsedEvent says at which used index the driver wants an interrupt (§2.7.7).
func (q *Queue) SetUsedEvent(i uint16) { q.put16(q.Avail+4+2*memory.GPA(q.Size), i) }

// AvailEvent is at which avail index the device wants a kick (§2.7.10).
func (q *Queue) AvailEvent() uint16 { return q.get16(q.Used + 4 + 8*memory.GPA(q.Size)) }

// UsedIndex is the device's index, and UsedFlags the flags that it writes.
func (q *Queue) UsedIndex() uint16 { return uint16(q.load(q.Used) >> 16) }

// UsedFlags are the flags that the device writes.
func (q *Queue) UsedFlags() uint16 { return uint16(q.load(q.Used)) }

// Publish hands chains to the device without a kick.
func (q *Queue) Publish(heads ...uint16) {
	q.t.Helper()
	i := q.AvailIndex()
	for _, head := range heads {
		q.SetAvail(i, head)
		i++
	}
	q.SetAvailIndex(i)
}

// Take returns the next chain that the device has given back and how much it
// has written, if there is one, and frees the descriptors.
func (q *Queue) Take() (head uint16, written uint32, ok bool) {
	q.t.Helper()
	if q.UsedIndex() == q.seen {
		return 0, 0, false
	}
	at := q.Used + 4 + 8*memory.GPA(q.seen%q.Size)
	id, err := q.mem.Uint32(at)
	if err != nil {
		q.t.Fatal(err)
	}
	if written, err = q.mem.Uint32(at + 4); err != nil {
		q.t.Fatal(err)
	}
	if id >= uint32(q.Size) || q.chains[uint16(id)] == nil {
		q.t.Fatalf("used ring entry %d is %d, which is no chain in flight", q.seen, id)
	}
	q.seen++
	q.free = append(q.free, q.chains[uint16(id)]...)
	delete(q.chains, uint16(id))
	return uint16(id), written, true
}

// Wait returns the next chain that the device gives back, and waits for its
// interrupt if need be. With EVENT_IDX it asks for the interrupt.
func (q *Queue) Wait() (head uint16, written uint32) {
	q.t.Helper()
	deadline := time.After(Patience)
	for {
		q.SetUsedEvent(q.seen)
		// A plain store and a load: the barrier between them is in the
		// store to the avail ring's header.
		q.store(q.Avail, q.load(q.Avail))
		if head, written, ok := q.Take(); ok {
			return head, written
		}
		select {
		case <-q.Interrupted:
		case <-deadline:
			q.t.Fatal("the device did not answer")
		}
	}
}

// Do makes one request and waits for the answer: out is what the device reads,
// one buffer for each slice, and in are the sizes of the buffers that it
// writes. It returns the contents of those and how much the device says that it
// has written. No other chain may be in flight.
func (q *Queue) Do(out [][]byte, in ...int) (answer [][]byte, written uint32) {
	q.t.Helper()
	var buffers []Buffer
	for _, p := range out {
		at := q.borrow(len(p))
		q.mem.Set(at, p)
		buffers = append(buffers, Buffer{GPA: at, Len: uint32(len(p))})
	}
	for _, n := range in {
		buffers = append(buffers, Buffer{GPA: q.borrow(n), Len: uint32(n), Write: true})
	}
	head := q.Chain(buffers...)
	q.Publish(head)
	q.Kick()
	got, written := q.Wait()
	if got != head {
		q.t.Fatalf("the device gave chain %d back, want %d", got, head)
	}
	for _, b := range buffers {
		if b.Write {
			answer = append(answer, q.mem.Get(b.GPA, int(b.Len)))
		}
		q.scratch[int(b.Len)] = append(q.scratch[int(b.Len)], b.GPA)
	}
	return answer, written
}

func (q *Queue) borrow(n int) memory.GPA {
	q.t.Helper()
	if s := q.scratch[n]; len(s) > 0 {
		q.scratch[n] = s[:len(s)-1]
		return s[len(s)-1]
	}
	return q.mem.Alloc(uint64(n), 16)
}

// load and store access the header of a ring, which the device reads and writes
// at the same time. A ring that is not aligned to 4 bytes has its header in two
// words.
func (q *Queue) load(at memory.GPA) uint32 {
	q.t.Helper()
	if at%4 != 0 {
		return uint32(q.get16(at)) | uint32(q.get16(at+2))<<16
	}
	x, err := q.mem.LoadUint32(at)
	if err != nil {
		q.t.Fatal(err)
	}
	return x
}

func (q *Queue) store(at memory.GPA, x uint32) {
	q.t.Helper()
	if at%4 != 0 {
		q.put16(at, uint16(x))
		q.put16(at+2, uint16(x>>16))
		return
	}
	if err := q.mem.StoreUint32(at, x); err != nil {
		q.t.Fatal(err)
	}
}

func (q *Queue) get16(at memory.GPA) uint16 {
	q.t.Helper()
	x, err := q.mem.Uint16(at)
	if err != nil {
		q.t.Fatal(err)
	}
	return x
}

func (q *Queue) put16(at memory.GPA, x uint16) {
	q.t.Helper()
	if err := q.mem.PutUint16(at, x); err != nil {
		q.t.Fatal(err)
	}
}
