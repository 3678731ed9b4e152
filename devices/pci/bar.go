package pci

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/memory"
)

// BAR is a window of a function's memory (§6.2.5.1).
type BAR struct {
	// Index is the number of the base address register, 0 to 5.
	Index int
	// Size in bytes is a power of two, at least 16. Pages of 4 KiB that the
	// guest may map to user space should have nothing else in them.
	Size uint64
	// Wide makes it a 64-bit register, which takes the next one with it.
	Wide bool
	// Prefetchable says that reads have no side effects.
	Prefetchable bool
	// Handler serves the accesses.
	Handler devices.Handler
	// Moved, if not nil, is told when the window appears at base, and when
	// it disappears from there: the place to attach doorbells. It runs with
	// the bus's lock held and must not access configuration space.
	Moved func(base memory.GPA, mapped bool)
}

// bar is a BAR and what became of it. Where the guest wants it is in the
// configuration space.
type bar struct {
	BAR
	// window is the name on the MMIO bus.
	window string
	// mapped and base say where the window is on the MMIO bus.
	mapped bool
	base   uint64
	// refused is the base at which it could not be mapped the last time, so
	// that one mistake of the guest counts as one.
	refused uint64
}

const (
	minBAR   = 16
	maxBAR32 = 1 << 31
	maxBAR64 = 1 << 44
)

// AddBAR gives the function a window.
func (f *Function) AddBAR(b BAR) error {
	if err := f.settable(); err != nil {
		return err
	}
	limit, registers := uint64(maxBAR32), 1
	if b.Wide {
		limit, registers = maxBAR64, 2
	}
	switch {
	case b.Index < 0 || b.Index+registers > bars:
		return fmt.Errorf("pci %s: BAR %d of %d registers: there are registers 0 to %d", f.name, b.Index, registers, bars-1)
	case bits.OnesCount64(b.Size) != 1 || b.Size < minBAR || b.Size > limit:
		return fmt.Errorf("pci %s: BAR %d of %#x bytes: want a power of two from %d to %#x", f.name, b.Index, b.Size, minBAR, limit)
	case b.Handler == nil:
		return fmt.Errorf("pci %s: BAR %d has no handler", f.name, b.Index)
	}
	for i := range registers {
		if f.barTaken(b.Index + i) {
			return fmt.Errorf("pci %s: BAR %d: register %d is taken", f.name, b.Index, b.Index+i)
		}
	}

	// The guest can write only the bits that choose a multiple of the size.
	// That is the whole sizing protocol: all ones written read back as the
	// negative of the size.
	mask := -b.Size
	le := binary.LittleEndian
	reg := regBAR0 + 4*b.Index
	le.PutUint32(f.writable[reg:], uint32(mask))
	var flags uint32
	if b.Prefetchable {
		flags |= barPrefetchable
	}
	if b.Wide {
		flags |= barWide
		le.PutUint32(f.writable[reg+4:], uint32(mask>>32))
	}
	le.PutUint32(f.config[reg:], flags)
	f.bars[b.Index] = bar{BAR: b, window: fmt.Sprintf("%s BAR %d", f.name, b.Index)}
	return nil
}

// barTaken tells whether a register belongs to a BAR, its own or the wide one
// before it.
func (f *Function) barTaken(i int) bool {
	return f.bars[i].Size != 0 || i > 0 && f.bars[i-1].Wide
}

// barBase is the address in a base address register.
func (f *Function) barBase(i int) uint64 {
	le := binary.LittleEndian
	reg := regBAR0 + 4*i
	base := uint64(le.Uint32(f.config[reg:]) &^ barFlags)
	if f.bars[i].Wide {
		base |= uint64(le.Uint32(f.config[reg+4:])) << 32
	}
	return base
}

func (f *Function) setBARBase(i int, base uint64) {
	le := binary.LittleEndian
	reg := regBAR0 + 4*i
	le.PutUint32(f.config[reg:], uint32(base)|le.Uint32(f.config[reg:])&barFlags)
	if f.bars[i].Wide {
		le.PutUint32(f.config[reg+4:], uint32(base>>32))
	}
}

// wanted is where the guest wants a BAR to be; 0 is nowhere.
func (f *Function) wanted(i int) uint64 {
	if f.bars[i].Size == 0 || f.config[regCommand]&commandMemory == 0 {
		return 0
	}
	return f.barBase(i)
}
