package machine

import (
	"fmt"
	"math/bits"

	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/memory"
)

// clearPages is how many pages are watched anew in one call: the kernel holds a
// lock over it that the processors need too. It is a multiple of 64.
const clearPages = 16 << 10

// StartDirtyLog has KVM note from now on which pages the guest writes. It may be
// called while the guest runs, and again while the log is on.
func (m *Machine) StartDirtyLog() error {
	m.dirtyMu.Lock()
	defer m.dirtyMu.Unlock()
	if m.logging {
		return nil
	}
	if !m.clearing {
		// Where the host has it, getting the log and watching anew are two
		// things, the latter in pieces; and starting takes no time.
		enough, err := m.vm.CheckExtension(kvm.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
		if err != nil {
			return err
		}
		if enough > 0 {
			if _, err := m.vm.EnableManualDirtyLogProtect(); err != nil {
				return err
			}
			m.clearing = true
		}
	}
	if err := m.setSlots(kvm.KVM_MEM_LOG_DIRTY_PAGES); err != nil {
		return err
	}
	m.logging, m.allDirty = true, true
	return nil
}

// StopDirtyLog ends that. The guest is faster without it.
func (m *Machine) StopDirtyLog() error {
	m.dirtyMu.Lock()
	defer m.dirtyMu.Unlock()
	if !m.logging {
		return nil
	}
	m.logging = false
	return m.setSlots(0)
}

// setSlots gives all of RAM to the guest, with the flags.
func (m *Machine) setSlots(flags uint32) error {
	for slot, r := range m.mem.Regions() {
		if err := m.vm.SetUserMemoryRegion(uint32(slot), flags, uint64(r.Start), r.Mem); err != nil {
			return err
		}
	}
	return nil
}

// FetchDirty sets the bits of the pages that the guest or a device has written since
// the last call, and starts anew: a page that is written while this runs is set now
// or by the next call. The first call after the start sets all. Pages are numbered
// as in memory.Guest.Dirty, which is drained; dst has a bit for each.
func (m *Machine) FetchDirty(dst []uint64) error {
	m.dirtyMu.Lock()
	defer m.dirtyMu.Unlock()
	if !m.logging {
		return fmt.Errorf("the guest's writes are not being logged")
	}
	fetched := 0
	for slot, r := range m.mem.Regions() {
		pages := r.Size / memory.PageSize
		words := kvm.DirtyWords(pages)
		if uint64(len(m.dirtyWords)) < words {
			m.dirtyWords = make([]uint64, words)
		}
		log := m.dirtyWords[:words]
		if err := m.vm.GetDirtyLog(uint32(slot), pages, log); err != nil {
			return err
		}
		if m.clearing {
			if err := m.watchAnew(uint32(slot), pages, log); err != nil {
				return err
			}
		}
		// Only the last region may end in the middle of a word.
		first := r.Offset / memory.PageSize / 64
		for i, w := range log {
			dst[first+uint64(i)] |= w
			fetched += bits.OnesCount64(w)
		}
	}
	m.mem.Dirty().Drain(dst)
	if !m.allDirty {
		m.dirtied.Add(uint64(fetched))
	}
	m.allDirty = false
	return nil
}

// watchAnew resets the log of the pages that are in it.
func (m *Machine) watchAnew(slot uint32, pages uint64, log []uint64) error {
	for first := uint64(0); first < pages; first += clearPages {
		n := min(clearPages, pages-first)
		part := log[first/64 : first/64+kvm.DirtyWords(n)]
		if isClear(part) {
			continue
		}
		if err := m.vm.ClearDirtyLog(slot, first, uint32(n), part); err != nil {
			return err
		}
	}
	return nil
}

func isClear(words []uint64) bool {
	for _, w := range words {
		if w != 0 {
			return false
		}
	}
	return true
}
