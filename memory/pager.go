package memory

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Pager says who brings the pages of the memory when they are touched first. Unless it
// is the kernel, nobody in this process touches pages but after Guest.Await, which View,
// Slice and all that go through them call.
type Pager int32

// The pagers.
const (
	// NoPager is the kernel: what was not written is zero, or the saved file's.
	NoPager Pager = iota
	// OwnPager is a userfaultfd server of this process. Discard does nothing.
	OwnPager
	// OtherPager is a userfaultfd server of another process, which learns from the
	// kernel what is discarded.
	OtherPager
)

// SetPager says who brings pages from now on. It is called before anybody uses the
// memory, and with NoPager when all pages have been brought.
func (g *Guest) SetPager(p Pager) { g.pager.Store(int32(p)) }

// Pager is who brings pages.
func (g *Guest) Pager() Pager { return Pager(g.pager.Load()) }

// Await is Await of a part of the guest's memory; it does nothing if the kernel brings it.
func (g *Guest) Await(mem []byte) error {
	if g.Pager() == NoPager {
		return nil
	}
	return Await(mem)
}

// discardPaged is Discard of memory that is brought. What another process brings is
// given back so that the kernel tells it. What this one does is kept: a page that goes
// missing once more could stop it for good.
func (g *Guest) discardPaged(mem []byte) (given uint64, err error) {
	if g.Pager() == OwnPager {
		return 0, nil
	}
	if err := unix.Madvise(mem, unix.MADV_REMOVE); err != nil {
		return 0, fmt.Errorf("give %d bytes of memory back that another process brings: %w", len(mem), err)
	}
	return uint64(len(mem)), nil
}
