package kvm

import (
	"fmt"
	"os"
	"sync/atomic"
)

// coalescedZone is struct kvm_coalesced_mmio_zone.
type coalescedZone struct {
	addr uint64
	size uint32
	pio  uint32
}

// CoalescedZone is a range of guest physical addresses or ports to which
// writes are queued instead of leaving KVM_RUN (KVM API §4.116). A queued
// write is seen late, so it suits only registers whose writes have no effect
// until another access.
type CoalescedZone struct {
	Addr uint64
	Size uint32 // in bytes
	PIO  bool   // Addr is a port (KVM_CAP_COALESCED_PIO)
}

// RegisterCoalesced starts queueing the writes to a zone.
func (m *VM) RegisterCoalesced(z CoalescedZone) error {
	return m.coalesce(KVM_REGISTER_COALESCED_MMIO, z)
}

// UnregisterCoalesced undoes RegisterCoalesced. What is queued stays queued.
func (m *VM) UnregisterCoalesced(z CoalescedZone) error {
	return m.coalesce(KVM_UNREGISTER_COALESCED_MMIO, z)
}

func (m *VM) coalesce(req Request, z CoalescedZone) error {
	arg := coalescedZone{addr: z.Addr, size: z.Size}
	if z.PIO {
		arg.pio = 1
	}
	if err := set(m.fd, req, arg); err != nil {
		return fmt.Errorf("%w (%d bytes at %#x)", err, z.Size, z.Addr)
	}
	return nil
}

// coalescedWrite is struct kvm_coalesced_mmio.
type coalescedWrite struct {
	physAddr uint64
	len      uint32
	pio      uint32
	data     [8]byte
}

// coalescedRing is the fixed part of struct kvm_coalesced_mmio_ring.
type coalescedRing struct {
	first uint32
	last  uint32
}

// coalescedPageOffset is KVM_COALESCED_MMIO_PAGE_OFFSET: the page of a vCPU's
// mapping that holds the ring.
const coalescedPageOffset = 2

// CoalescedWrite is a write taken from the queue.
type CoalescedWrite struct {
	Addr uint64
	PIO  bool
	Len  int // 1 to 8
	Data [8]byte
}

// NextCoalesced takes the oldest write out of the queue; ok is false when it
// is empty. All vCPUs of a VM share one queue: take it under a lock, and take
// all of it before serving any exit, to keep the guest's order.
func (v *VCPU) NextCoalesced() (w CoalescedWrite, ok bool) {
	page := os.Getpagesize()
	if len(v.run) < (coalescedPageOffset+1)*page {
		return w, false
	}
	ring, slots := coalescedView(v.run[coalescedPageOffset*page:][:page])
	// KVM fills a slot before it moves last, and reuses it only after first
	// has moved past it. first is ours.
	first := ring.first % uint32(len(slots))
	if first == atomic.LoadUint32(&ring.last)%uint32(len(slots)) {
		return w, false
	}
	slot := &slots[first]
	w = CoalescedWrite{
		Addr: slot.physAddr,
		PIO:  slot.pio != 0,
		Len:  int(min(slot.len, uint32(len(slot.data)))),
		Data: slot.data,
	}
	atomic.StoreUint32(&ring.first, (first+1)%uint32(len(slots)))
	return w, true
}
