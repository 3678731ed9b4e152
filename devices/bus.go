// Package devices is the platform around the processors: the address buses,
// the interrupt controller, and the handful of legacy parts that a stock
// kernel expects on a PC. PCI is in devices/pci, virtio in devices/virtio.
//
// Nothing here knows KVM. A device is reached through a Handler on a Bus and
// speaks through a Line, an MSI or a callback, so every one of them runs in a
// test without /dev/kvm. Registers are the guest's to play with: no sequence
// of accesses may panic, block or grow memory.
package devices

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// Handler serves the accesses to one window of ports or MMIO. The offset is
// relative to the window, len(data) is 1, 2, 4 or 8, and the access lies inside
// the window but need not be aligned. Data is little-endian.
//
// Several vCPU threads call a Handler at once, and an access may still arrive
// shortly after its window was unmapped. A Handler does not keep data.
type Handler interface {
	Read(offset uint64, data []byte)
	Write(offset uint64, data []byte)
}

// Bus finds the Handler of an address: one Bus for ports, one for MMIO. The
// zero value is an empty bus. Reads and writes take no lock and do not
// allocate; Map and Unmap may run at the same time.
type Bus struct {
	// mu serializes the writers of table.
	mu sync.Mutex
	// table is sorted by address and never changed, only replaced.
	table atomic.Pointer[[]window]

	strayReads, strayWrites atomic.Uint64
}

// window is one mapped range. It ends with the byte last, not behind it, so
// that a window up to the end of the address space needs no special case.
type window struct {
	name       string
	base, last uint64
	handler    Handler
}

// covers tells whether an access of n bytes at addr, which lies in the
// window, can go to the handler in one piece.
func (w *window) covers(addr uint64, n int) bool {
	switch n {
	case 1, 2, 4, 8:
		return uint64(n-1) <= w.last-addr
	}
	return false
}

// Map gives the size bytes from base to h. It fails, and changes nothing, when
// the window is empty, passes the end of the address space or overlaps another.
func (b *Bus) Map(name string, base, size uint64, h Handler) error {
	if size == 0 {
		return fmt.Errorf("map %s at %#x: the window is empty", name, base)
	}
	last := base + size - 1
	if last < base {
		return fmt.Errorf("map %s: %#x bytes at %#x pass the end of the address space", name, size, base)
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.windows()
	i, _ := slices.BinarySearchFunc(old, base, func(w window, base uint64) int {
		if w.last < base {
			return -1
		}
		return 1
	})
	// old[i] is the first window that does not end below base.
	if i < len(old) && old[i].base <= last {
		return fmt.Errorf("map %s at %#x-%#x: overlaps %s at %#x-%#x",
			name, base, last, old[i].name, old[i].base, old[i].last)
	}
	table := slices.Insert(slices.Clone(old), i, window{name, base, last, h})
	b.table.Store(&table)
	return nil
}

// Unmap removes the window that starts at base, if there is one.
func (b *Bus) Unmap(base uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	table := slices.DeleteFunc(slices.Clone(b.windows()), func(w window) bool { return w.base == base })
	b.table.Store(&table)
}

// Read fills data from the device at addr. Bytes that no device claims read as
// all ones, and the access is counted.
func (b *Bus) Read(addr uint64, data []byte) {
	if w := b.find(addr); w != nil && w.covers(addr, len(data)) {
		w.handler.Read(addr-w.base, data)
		return
	}
	stray := false
	for i := range data {
		at := addr + uint64(i)
		if w := b.find(at); w != nil {
			w.handler.Read(at-w.base, data[i:i+1])
			continue
		}
		data[i] = 0xff
		stray = true
	}
	if stray {
		b.strayReads.Add(1)
	}
}

// Write hands data to the device at addr. Bytes that no device claims are
// dropped, and the access is counted.
func (b *Bus) Write(addr uint64, data []byte) {
	if w := b.find(addr); w != nil && w.covers(addr, len(data)) {
		w.handler.Write(addr-w.base, data)
		return
	}
	stray := false
	for i := range data {
		at := addr + uint64(i)
		if w := b.find(at); w != nil {
			w.handler.Write(at-w.base, data[i:i+1])
			continue
		}
		stray = true
	}
	if stray {
		b.strayWrites.Add(1)
	}
}

// Unclaimed counts the accesses so far of which some byte had no device.
func (b *Bus) Unclaimed() (reads, writes uint64) {
	return b.strayReads.Load(), b.strayWrites.Load()
}

func (b *Bus) windows() []window {
	if t := b.table.Load(); t != nil {
		return *t
	}
	return nil
}

// find returns the window that holds addr, or nil.
func (b *Bus) find(addr uint64) *window {
	table := b.windows()
	lo, hi := 0, len(table)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		switch w := &table[mid]; {
		case addr < w.base:
			hi = mid
		case addr > w.last:
			lo = mid + 1
		default:
			return w
		}
	}
	return nil
}
