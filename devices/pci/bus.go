package pci

import (
	"fmt"
	"sync"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/memory"
)

// BusConfig says what is around the bus.
type BusConfig struct {
	// MMIO is where BARs are mapped.
	MMIO *devices.Bus
	// RAM is what BARs must not lie over. The processors would see RAM
	// there all the same; the window is refused so that it can be told.
	RAM []memory.Range
	// Window32 and Window64 are the addresses for BARs below and above
	// 4 GiB, as the host bridge's _CRS in the DSDT says. Window64 may be
	// empty.
	Window32, Window64 memory.Range
	// Reset serves the byte at devices.ResetPort, which lies among the
	// ports of the configuration mechanism. Nil is nothing there.
	Reset devices.Handler
}

// Bus is PCI bus 0. All methods may be called from any goroutine. One lock
// covers the configuration space of all functions; accesses to BARs do not
// take it.
type Bus struct {
	config BusConfig

	mu        sync.Mutex
	functions [Slots]*Function
	address   uint32 // CONFIG_ADDRESS of the configuration ports
	// next32 and next64 are where the next BARs go.
	next32, next64 memory.GPA
	refusals       uint64
	lastRefusal    error
}

// NewBus makes a bus with the host bridge in slot 0.
func NewBus(c BusConfig) *Bus {
	b := &Bus{config: c, next32: c.Window32.Start, next64: c.Window64.Start}
	bridge := newHostBridge()
	bridge.attached = true
	b.functions[0] = bridge
	return b
}

// newHostBridge makes function 00:00.0. Linux accepts the configuration ports
// only if it finds a host bridge by class. The ID is that of QEMU's generic
// PCI Express host: no operating system takes it for a real chipset with quirks
// and registers of its own to be poked.
func newHostBridge() *Function {
	return NewFunction(FunctionConfig{
		Name:     "host bridge",
		VendorID: 0x1b36,
		DeviceID: 0x0008,
		Class:    0x060000,
	})
}

// Add puts the function into the lowest free slot, gives its BARs addresses and
// returns the slot. The same functions added in the same order get the same
// slots and addresses.
func (b *Bus) Add(f *Function) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for slot, other := range b.functions {
		if other == nil {
			return slot, b.add(slot, f)
		}
	}
	return 0, fmt.Errorf("pci %s: %w, all %d slots are taken", f.name, ErrFull, Slots)
}

// AddAt puts the function into the given slot.
func (b *Bus) AddAt(slot int, f *Function) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slot < 0 || slot >= Slots {
		return fmt.Errorf("pci %s: slot %d: there are slots 0 to %d", f.name, slot, Slots-1)
	}
	if other := b.functions[slot]; other != nil {
		return fmt.Errorf("pci %s: slot %d is taken by %s", f.name, slot, other.name)
	}
	return b.add(slot, f)
}

func (b *Bus) add(slot int, f *Function) error {
	if err := f.settable(); err != nil {
		return err
	}
	if err := b.assign(f); err != nil {
		return err
	}
	f.attached = true
	b.functions[slot] = f
	return nil
}

// maxLowBAR is the largest 64-bit BAR that goes below 4 GiB while there is
// room: every guest can reach it there. Larger ones would soon fill the window.
const maxLowBAR = 16 << 20

// assign gives the BARs addresses. There is no firmware to do it; Linux would,
// but finds it easier to agree with what it finds. Decoding stays off until
// the driver enables it.
func (b *Bus) assign(f *Function) error {
	next32, next64 := b.next32, b.next64
	for i := range f.bars {
		bar := &f.bars[i]
		if bar.Size == 0 {
			continue
		}
		var base memory.GPA
		var ok bool
		if !bar.Wide || bar.Size <= maxLowBAR {
			base, ok = place(&next32, b.config.Window32, bar.Size)
		}
		if !ok && bar.Wide {
			base, ok = place(&next64, b.config.Window64, bar.Size)
		}
		if !ok {
			return fmt.Errorf("pci %s: BAR %d of %#x bytes: %w in the address windows", f.name, i, bar.Size, ErrFull)
		}
		f.setBARBase(i, uint64(base))
	}
	b.next32, b.next64 = next32, next64
	return nil
}

// place takes size bytes, aligned to the size and to pages, from a window.
func place(next *memory.GPA, window memory.Range, size uint64) (memory.GPA, bool) {
	align := memory.GPA(max(size, memory.PageSize))
	base := (*next + align - 1) &^ (align - 1)
	if base < *next || !window.Contains(base, size) {
		return 0, false
	}
	*next = base + memory.GPA(size)
	return base, true
}

// Refusals counts the times that a guest put a BAR where it could not be, and
// returns the last such error. The BAR appears when its place gets free.
func (b *Bus) Refusals() (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refusals, b.lastRefusal
}

// read serves a read of configuration space. Where there is no function, and
// behind the end of its space, it is all ones.
func (b *Bus) read(slot, function, reg int, data []byte) {
	for i := range data {
		data[i] = 0xff
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if f := b.functions[slot]; f != nil && function == 0 {
		f.read(reg, data[:min(len(data), ConfigSize-reg)])
	}
}

func (b *Bus) write(slot, function, reg int, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.functions[slot]
	if f == nil || function != 0 {
		return
	}
	data = data[:min(len(data), ConfigSize-reg)]
	f.write(reg, data)
	if end := reg + len(data); reg < regCommand+2 && end > regCommand || reg < regBAR0+4*bars && end > regBAR0 {
		b.remap()
	}
}

// remap makes the windows on the MMIO bus follow the registers. It takes away
// before it adds, so that BARs can swap places, and looks at all functions,
// because one that was refused may have a place now.
func (b *Bus) remap() {
	for _, f := range b.functions {
		for i := range f.windows() {
			if bar := &f.bars[i]; bar.mapped && bar.base != f.wanted(i) {
				bar.mapped = false
				b.config.MMIO.Unmap(bar.base)
				bar.moved()
			}
		}
	}
	for _, f := range b.functions {
		for i := range f.windows() {
			bar := &f.bars[i]
			base := f.wanted(i)
			if base == 0 {
				bar.refused = 0
			}
			if base == 0 || bar.mapped {
				continue
			}
			if err := b.mapBAR(bar, base); err != nil {
				b.refuse(bar, base, err)
				continue
			}
			bar.mapped, bar.base, bar.refused = true, base, 0
			bar.moved()
		}
	}
}

func (b *Bus) mapBAR(bar *bar, base uint64) error {
	for _, r := range b.config.RAM {
		// Neither sum overflows: RAM ends far below 2^64, and base is
		// a multiple of the size.
		if base < uint64(r.End()) && uint64(r.Start) <= base+(bar.Size-1) {
			return fmt.Errorf("pci %s at %#x lies over guest RAM", bar.window, base)
		}
	}
	return b.config.MMIO.Map(bar.window, base, bar.Size, bar.Handler)
}

func (b *Bus) refuse(bar *bar, base uint64, err error) {
	if bar.refused == base {
		return
	}
	bar.refused = base
	b.refusals++
	b.lastRefusal = err
}

// windows has an element for each base address register; none for no function.
func (f *Function) windows() []bar {
	if f == nil {
		return nil
	}
	return f.bars[:]
}

func (b *bar) moved() {
	if b.Moved != nil {
		b.Moved(memory.GPA(b.base), b.mapped)
	}
}
