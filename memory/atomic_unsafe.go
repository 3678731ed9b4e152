package memory

import (
	"fmt"
	"sync/atomic"
	"unsafe"
)

// word returns the aligned 32-bit word at gpa as something sync/atomic takes.
// The pointer is into a mapping that outlives every user of the Guest, and
// the alignment check makes the access one that cannot tear.
func (g *Guest) word(gpa GPA) (*uint32, error) {
	v, err := g.View(gpa, 4)
	if err != nil {
		return nil, err
	}
	if gpa%4 != 0 {
		return nil, fmt.Errorf("atomic access at guest address %#x: not aligned to 4 bytes", uint64(gpa))
	}
	return (*uint32)(unsafe.Pointer(unsafe.SliceData(v))), nil
}

// LoadUint32 reads the aligned 32-bit word at gpa in one access, with acquire
// ordering towards the guest's stores.
func (g *Guest) LoadUint32(gpa GPA) (uint32, error) {
	p, err := g.word(gpa)
	if err != nil {
		return 0, err
	}
	return atomic.LoadUint32(p), nil
}

// StoreUint32 writes the aligned 32-bit word at gpa in one access and is a
// full memory barrier, so that a later load is not moved before it.
func (g *Guest) StoreUint32(gpa GPA, x uint32) error {
	p, err := g.word(gpa)
	if err != nil {
		return err
	}
	atomic.StoreUint32(p, x)
	g.MarkDirty(gpa, 4)
	return nil
}
