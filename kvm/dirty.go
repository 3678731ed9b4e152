package kvm

import "fmt"

// Arguments of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
const (
	KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE = 1 << 0
	KVM_DIRTY_LOG_INITIALLY_SET         = 1 << 1
)

// EnableManualDirtyLogProtect makes GetDirtyLog leave the log as it is, and
// ClearDirtyLog the only thing that resets it (KVM API §7). Where the host
// has it, logs also start with every page dirty, which makes starting one
// cheap: the pages are write-protected as they are cleared. It tells whether
// that is so.
func (m *VM) EnableManualDirtyLogProtect() (initiallySet bool, err error) {
	flags, err := m.CheckExtension(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
	if err != nil {
		return false, err
	}
	flags &= KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET
	if err := m.EnableCap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, uint64(flags)); err != nil {
		return false, err
	}
	return flags&KVM_DIRTY_LOG_INITIALLY_SET != 0, nil
}

// DirtyWords is how many words a bitmap of that many pages takes.
func DirtyWords(pages uint64) uint64 { return (pages + 63) / 64 }

// GetDirtyLog fills bitmap with the pages of a slot written since the log was
// last reset, bit i%64 of word i/64 being page i of the slot (KVM API §4.8).
// It resets the log, unless EnableManualDirtyLogProtect was called.
//
// A page that the guest has only read may be among them, because KVM maps a
// page for writing as soon as it can.
//
// pages is the size of the slot: the kernel writes that many bits, rounded up
// to a word, wherever bitmap ends.
func (m *VM) GetDirtyLog(slot uint32, pages uint64, bitmap []uint64) error {
	if uint64(len(bitmap)) < DirtyWords(pages) {
		return fmt.Errorf("kvm: %v: bitmap of %d words for %d pages of slot %d, need %d",
			KVM_GET_DIRTY_LOG, len(bitmap), pages, slot, DirtyWords(pages))
	}
	if err := getDirtyLog(m.fd, slot, bitmap); err != nil {
		return fmt.Errorf("%w (slot %d)", err, slot)
	}
	return nil
}

// ClearDirtyLog resets the log of the pages whose bit is set in bitmap, bit 0
// being page firstPage of the slot, and watches them anew (KVM API §4.117). It
// needs EnableManualDirtyLogProtect. firstPage is a multiple of 64, and so is
// pages unless the range ends with the slot. Clear in pieces: the kernel holds
// a lock over each call that the vCPUs need too.
func (m *VM) ClearDirtyLog(slot uint32, firstPage uint64, pages uint32, bitmap []uint64) error {
	if uint64(len(bitmap)) < DirtyWords(uint64(pages)) {
		return fmt.Errorf("kvm: %v: bitmap of %d words for %d pages of slot %d, need %d",
			KVM_CLEAR_DIRTY_LOG, len(bitmap), pages, slot, DirtyWords(uint64(pages)))
	}
	if err := doClearDirtyLog(m.fd, slot, firstPage, pages, bitmap); err != nil {
		return fmt.Errorf("%w (slot %d, pages %d to %d)", err, slot, firstPage, firstPage+uint64(pages))
	}
	return nil
}
