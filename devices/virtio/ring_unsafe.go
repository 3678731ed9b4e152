package virtio

import (
	"sync/atomic"
	"unsafe"
)

// ring is the memory of an avail or used ring, whose start is aligned to 4
// bytes. The other side is a processor of the guest, which reads and writes at
// any time: words are read and written whole, and in the order of the program.
//
// sync/atomic has no 16-bit operations, so a 16-bit field is read as a part of
// the 32-bit word around it.
type ring []byte

// load32 reads the word at off, a multiple of 4.
func (r ring) load32(off int) uint32 {
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&r[off : off+4][0])))
}

// store32 writes the word at off, a multiple of 4. It is a full barrier: no
// later load is moved before it.
func (r ring) store32(off int, x uint32) {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&r[off : off+4][0])), x)
}

// load16 reads the 16-bit number at off, which is even. The word around it
// must lie in the ring.
func (r ring) load16(off int) uint16 {
	return uint16(r.load32(off&^3) >> (8 * (off & 2)))
}

// store16 writes the 16-bit number at off, which is even.
func (r ring) store16(off int, x uint16) {
	*(*uint16)(unsafe.Pointer(&r[off : off+2][0])) = x
}
