package kvm

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// dirtyGFN is struct kvm_dirty_gfn: an entry of the ring.
type dirtyGFN struct {
	flags  uint32
	slot   uint32
	offset uint64
}

// The life of an entry: KVM sets dirty, user space sets reset, KVM clears
// both in ResetDirtyRings.
const (
	dirtyGFNFlagDirty = 1 << 0
	dirtyGFNFlagReset = 1 << 1

	// KVM_DIRTY_LOG_PAGE_OFFSET: the page of a vCPU's mapping at which
	// its ring begins.
	dirtyLogPageOffset = 64
)

// DirtyPage is a page of a slot, counted from the slot's start. The upper 16
// bits of Slot are the address space (system management mode).
type DirtyPage struct {
	Slot uint32
	Page uint64
}

// EnableDirtyRing makes KVM log dirty pages in a ring per vCPU instead of a
// bitmap per slot (KVM_CAP_DIRTY_LOG_RING, KVM API §7). size is the size of a
// ring in bytes, a power of two of at least a page and at most what
// CheckExtension says of the capability; an entry is 16 bytes. It must come
// before the first vCPU. A vCPU whose ring is full exits with
// KVM_EXIT_DIRTY_RING_FULL.
func (m *VM) EnableDirtyRing(size int) error {
	// The two capabilities differ only where memory ordering is weak; the
	// newer one is not on Linux before 6.1.
	c := KVM_CAP_DIRTY_LOG_RING_ACQ_REL
	if n, err := m.CheckExtension(c); err == nil && n == 0 {
		c = KVM_CAP_DIRTY_LOG_RING
	}
	return m.EnableCap(c, uint64(size))
}

// ResetDirtyRings takes back the entries that NextDirty returned on all vCPUs,
// watches their pages anew, and tells how many they were.
func (m *VM) ResetDirtyRings() (int, error) {
	n, err := call(m.fd, KVM_RESET_DIRTY_RINGS, 0)
	return int(n), err
}

// MapDirtyRing maps the vCPU's ring of size bytes, as given to
// EnableDirtyRing. Close unmaps it.
func (v *VCPU) MapDirtyRing(size int) error {
	if v.ring != nil {
		return errors.New("kvm: the dirty ring is mapped already")
	}
	mem, err := unix.Mmap(v.fd, dirtyLogPageOffset*int64(os.Getpagesize()), size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("kvm: map the dirty ring of vCPU %d, %d bytes: %w", v.id, size, err)
	}
	v.ringMem, v.ring = mem, entriesOf[dirtyGFN](mem)
	return nil
}

func (v *VCPU) unmapDirtyRing() error {
	if v.ring == nil {
		return nil
	}
	v.ring = nil
	if err := unix.Munmap(v.ringMem); err != nil {
		return fmt.Errorf("kvm: unmap the dirty ring of vCPU %d: %w", v.id, err)
	}
	return nil
}

// NextDirty takes the next entry out of the ring; ok is false when it is
// empty. Any one goroutine may collect, also while the vCPU runs. The ring
// does not get emptier for KVM until ResetDirtyRings.
func (v *VCPU) NextDirty() (page DirtyPage, ok bool) {
	if len(v.ring) == 0 {
		return DirtyPage{}, false
	}
	e := &v.ring[v.ringNext%uint32(len(v.ring))]
	// KVM publishes an entry by its flags, and takes it back by them: the
	// load acquires slot and offset, and the store releases them.
	if atomic.LoadUint32(&e.flags)&(dirtyGFNFlagDirty|dirtyGFNFlagReset) != dirtyGFNFlagDirty {
		return DirtyPage{}, false
	}
	page = DirtyPage{Slot: e.slot, Page: e.offset}
	atomic.StoreUint32(&e.flags, dirtyGFNFlagReset)
	v.ringNext++
	return page, true
}
