package kvm

import (
	"errors"
	"math/bits"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// dirtier writes to pages 0x40, 0x41 and 0x80 of the guest, exits, and then in
// a loop writes to page 0x41 and exits.
var dirtier = []byte{
	0x88, 0x04, 0x25, 0x00, 0x00, 0x04, 0x00, // mov [0x40000], al
	0x88, 0x04, 0x25, 0x00, 0x10, 0x04, 0x00, // mov [0x41000], al
	0x88, 0x04, 0x25, 0x00, 0x00, 0x08, 0x00, // mov [0x80000], al
	0xe6, 0x10, // out 0x10, al
	0x88, 0x04, 0x25, 0x00, 0x10, 0x04, 0x00, // mov [0x41000], al
	0xeb, 0xf5, // jmp to the out
}

// firstPage is the first page that the guest writes to. Those before it are
// page tables and code; KVM may log them too.
const firstPage = 0x40

// pages lists the set bits from firstPage on.
func pages(bitmap []uint64) []uint64 {
	var list []uint64
	for i, w := range bitmap {
		for ; w != 0; w &= w - 1 {
			if page := uint64(i*64 + bits.TrailingZeros64(w)); page >= firstPage {
				list = append(list, page)
			}
		}
	}
	return list
}

func (g *guest) logDirty() {
	g.t.Helper()
	ok(g.t, g.vm.SetUserMemoryRegion(guestSlot, KVM_MEM_LOG_DIRTY_PAGES, 0, g.mem))
}

func (g *guest) wantDirty(want ...uint64) {
	g.t.Helper()
	bitmap := make([]uint64, DirtyWords(guestPages))
	ok(g.t, g.vm.GetDirtyLog(guestSlot, guestPages, bitmap))
	if got := pages(bitmap); !slices.Equal(got, want) {
		g.t.Errorf("dirty pages %#x, want %#x", got, want)
	}
}

func TestDirtyLog(t *testing.T) {
	g := newGuest(t, dirtier)
	bitmap := make([]uint64, DirtyWords(guestPages))
	if err := g.vm.GetDirtyLog(guestSlot, guestPages, bitmap); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a slot without log gave %v, want %v", err, unix.ENOENT)
	}
	g.logDirty()
	g.runTo(0x10)
	g.wantDirty(0x40, 0x41, 0x80)
	g.wantDirty() // reading resets
	g.runTo(0x10)
	g.wantDirty(0x41)
	if err := g.vm.GetDirtyLog(guestSlot, guestPages, bitmap[1:]); err == nil {
		t.Error("a short bitmap was taken")
	}
}

func TestManualDirtyLog(t *testing.T) {
	var initiallySet bool
	g := newGuest(t, dirtier, func(m *VM) {
		var err error
		initiallySet, err = m.EnableManualDirtyLogProtect()
		ok(t, err)
	})
	g.logDirty()
	bitmap := make([]uint64, DirtyWords(guestPages))
	ok(t, g.vm.GetDirtyLog(guestSlot, guestPages, bitmap))
	if n := len(pages(bitmap)); initiallySet && n != guestPages-firstPage {
		t.Errorf("%d pages dirty at first, want all", n)
	}
	for i := range bitmap {
		bitmap[i] = ^uint64(0)
	}
	ok(t, g.vm.ClearDirtyLog(guestSlot, 0, guestPages, bitmap))
	g.wantDirty()
	g.runTo(0x10)
	g.wantDirty(0x40, 0x41, 0x80)
	g.wantDirty(0x40, 0x41, 0x80) // reading does not reset
	// Bit 0 of the bitmap is page 64, which is 0x40.
	ok(t, g.vm.ClearDirtyLog(guestSlot, 64, 64, []uint64{1 << 1}))
	g.wantDirty(0x40, 0x80)
	g.runTo(0x10)
	g.wantDirty(0x40, 0x41, 0x80)
	if err := g.vm.ClearDirtyLog(guestSlot, 1, 64, bitmap); !errors.Is(err, unix.EINVAL) {
		t.Errorf("an unaligned first page gave %v", err)
	}
	if err := g.vm.ClearDirtyLog(guestSlot, 0, 65, bitmap[:1]); err == nil {
		t.Error("a short bitmap was taken")
	}
}

func TestDirtyRing(t *testing.T) {
	const size = 64 << 10
	sys := openSystem(t)
	if n, err := sys.CheckExtension(KVM_CAP_DIRTY_LOG_RING_ACQ_REL); err != nil || n < size {
		t.Skipf("needs KVM_CAP_DIRTY_LOG_RING_ACQ_REL (%d, %v)", n, err)
	}
	g := newGuest(t, dirtier, func(m *VM) { ok(t, m.EnableDirtyRing(size)) })
	if _, found := g.cpu.NextDirty(); found {
		t.Error("an entry without a ring")
	}
	ok(t, g.cpu.MapDirtyRing(size))
	if err := g.cpu.MapDirtyRing(size); err == nil {
		t.Error("mapped twice")
	}
	g.logDirty()
	collect := func() (list []uint64, entries int) {
		for {
			p, found := g.cpu.NextDirty()
			if !found {
				return list, entries
			}
			if p.Slot != guestSlot {
				t.Errorf("slot %d", p.Slot)
			}
			entries++
			if p.Page >= firstPage {
				list = append(list, p.Page)
			}
		}
	}
	for _, want := range [][]uint64{{0x40, 0x41, 0x80}, {0x41}, {0x41}} {
		g.runTo(0x10)
		got, entries := collect()
		if !slices.Equal(got, want) {
			t.Errorf("dirty pages %#x, want %#x", got, want)
		}
		n, err := g.vm.ResetDirtyRings()
		ok(t, err)
		if n != entries {
			t.Errorf("%d entries reset, %d collected", n, entries)
		}
	}
}
