package vpci

import (
	"encoding/binary"

	"github.com/godwit-vmm/godwit/memory"
)

// registers serves the BAR.
type registers Function

// Read serves a read of the driver. An access that is wider than the register,
// or does not hit one, reads as zero (§4.1.3.1 forbids it).
func (r *registers) Read(offset uint64, data []byte) {
	f := (*Function)(r)
	clear(data)
	switch at := offset % memory.PageSize; offset - at {
	case commonPage:
		f.readCommon(at, data)
	case isrPage:
		// Reading it acknowledges (§4.1.4.5).
		if at == 0 {
			data[0] = byte(f.isr.Swap(0))
		}
	case devicePage:
		f.mu.Lock()
		defer f.mu.Unlock()
		f.device.ReadConfig(at, data)
	}
}

// Write serves a write of the driver.
func (r *registers) Write(offset uint64, data []byte) {
	f := (*Function)(r)
	switch at := offset % memory.PageSize; offset - at {
	case commonPage:
		f.writeCommon(at, data)
	case devicePage:
		f.mu.Lock()
		defer f.mu.Unlock()
		f.device.WriteConfig(at, data)
	case notifyPage:
		f.ring(at)
	}
}

// register is a field of the common configuration structure (§4.1.4.3).
type register struct {
	offset, width int
	read          func(*Function) uint64
	write         func(*Function, uint64) // nil for one that is read-only
}

// commonSize is the size of the structure, with the fields for features that
// are not offered (queue_notify_data, queue_reset), which read as zero.
const commonSize = 60

var common = [...]register{
	{0, 4, func(f *Function) uint64 { return uint64(f.featureSelect) }, func(f *Function, x uint64) { f.featureSelect = uint32(x) }},
	{4, 4, func(f *Function) uint64 { return half(f.offered, f.featureSelect) }, nil},
	{8, 4, func(f *Function) uint64 { return uint64(f.acceptSelect) }, func(f *Function, x uint64) { f.acceptSelect = uint32(x) }},
	{12, 4, func(f *Function) uint64 { return half(f.features, f.acceptSelect) }, (*Function).writeFeatures},
	{16, 2, func(f *Function) uint64 { return uint64(f.configVector.Load()) }, func(f *Function, x uint64) { f.configVector.Store(f.vector(x)) }},
	{18, 2, func(f *Function) uint64 { return uint64(len(f.queues)) }, nil},
	{20, 1, func(f *Function) uint64 { return uint64(f.readStatus()) }, (*Function).writeStatus},
	{21, 1, func(f *Function) uint64 { return uint64(f.generation.Load()) }, nil},
	{22, 2, func(f *Function) uint64 { return uint64(f.queueSelect) }, func(f *Function, x uint64) { f.queueSelect = uint16(x) }},
	{24, 2, ofQueue(func(q *queue) uint64 { return uint64(q.config.Size) }), (*Function).writeQueueSize},
	{26, 2, ofQueue(func(q *queue) uint64 { return uint64(q.vector.Load()) }), (*Function).writeQueueVector},
	{28, 2, ofQueue(func(q *queue) uint64 { return bit(q.Enabled()) }), (*Function).enableQueue},
	{30, 2, func(f *Function) uint64 { return f.notifyOffset() }, nil},
	{32, 4, ofQueue(func(q *queue) uint64 { return low(q.config.Desc) }), setAddress(func(q *queue) *memory.GPA { return &q.config.Desc }, 0)},
	{36, 4, ofQueue(func(q *queue) uint64 { return high(q.config.Desc) }), setAddress(func(q *queue) *memory.GPA { return &q.config.Desc }, 32)},
	{40, 4, ofQueue(func(q *queue) uint64 { return low(q.config.Avail) }), setAddress(func(q *queue) *memory.GPA { return &q.config.Avail }, 0)},
	{44, 4, ofQueue(func(q *queue) uint64 { return high(q.config.Avail) }), setAddress(func(q *queue) *memory.GPA { return &q.config.Avail }, 32)},
	{48, 4, ofQueue(func(q *queue) uint64 { return low(q.config.Used) }), setAddress(func(q *queue) *memory.GPA { return &q.config.Used }, 0)},
	{52, 4, ofQueue(func(q *queue) uint64 { return high(q.config.Used) }), setAddress(func(q *queue) *memory.GPA { return &q.config.Used }, 32)},
}

// find returns the register that an access hits exactly, or nil.
func find(offset uint64, width int) *register {
	for i := range common {
		if r := &common[i]; uint64(r.offset) == offset && r.width == width {
			return r
		}
	}
	return nil
}

func (f *Function) readCommon(offset uint64, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// The addresses have 64 bits, which may be accessed as such.
	for len(data) == 8 {
		if r := find(offset, 4); r != nil {
			binary.LittleEndian.PutUint32(data, uint32(r.read(f)))
		}
		offset, data = offset+4, data[4:]
	}
	if r := find(offset, len(data)); r != nil {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], r.read(f))
		copy(data, word[:])
	}
}

func (f *Function) writeCommon(offset uint64, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(data) == 8 {
		f.writeRegister(offset, data[:4])
		offset, data = offset+4, data[4:]
	}
	f.writeRegister(offset, data)
}

func (f *Function) writeRegister(offset uint64, data []byte) {
	if r := find(offset, len(data)); r != nil && r.write != nil {
		var word [8]byte
		copy(word[:], data)
		r.write(f, binary.LittleEndian.Uint64(word[:]))
	}
}

// half is the window of 32 bits that a select register chooses. There are only
// two.
func half(x uint64, sel uint32) uint64 {
	if sel > 1 {
		return 0
	}
	return uint64(uint32(x >> (32 * sel)))
}

func low(a memory.GPA) uint64  { return uint64(uint32(a)) }
func high(a memory.GPA) uint64 { return uint64(a >> 32) }

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// selected is the queue that queue_select chooses, nil if there is none: then
// its registers read as zero (§4.1.4.3.1), and writes do nothing.
func (f *Function) selected() *queue {
	if int(f.queueSelect) >= len(f.queues) {
		return nil
	}
	return &f.queues[f.queueSelect]
}

func ofQueue(read func(*queue) uint64) func(*Function) uint64 {
	return func(f *Function) uint64 {
		if q := f.selected(); q != nil {
			return read(q)
		}
		return 0
	}
}

// notifyOffset is queue_notify_off, in units of the multiplier.
func (f *Function) notifyOffset() uint64 {
	if f.selected() == nil {
		return 0
	}
	return uint64(f.queueSelect)
}
