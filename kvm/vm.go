package kvm

import (
	"fmt"
)

// VM is a virtual machine.
type VM struct {
	fd        int
	mmapSize  int
	xsaveSize int
}

func newVM(fd, mmapSize int) (*VM, error) {
	m := &VM{fd: fd, mmapSize: mmapSize}
	size, err := m.CheckExtension(KVM_CAP_XSAVE2)
	if err != nil {
		m.Close()
		return nil, err
	}
	m.xsaveSize = max(size, xsaveMinSize)
	return m, nil
}

// Close closes the handle. The VM itself goes when its vCPUs are closed too.
// Unmap guest memory only after that.
func (m *VM) Close() error { return closeFD(&m.fd) }

// CheckExtension asks for a capability of this VM: 0 is no (KVM API §4.4).
func (m *VM) CheckExtension(c Capability) (int, error) {
	return checkExtension(m.fd, c)
}

// EnableCap turns a capability on (KVM API §4.37 and §7). The meaning of the
// up to four arguments is the capability's.
func (m *VM) EnableCap(c Capability, args ...uint64) error {
	arg := enableCap{cap: uint32(c)}
	if len(args) > len(arg.args) {
		return fmt.Errorf("kvm: enable %v: %d arguments, at most %d", c, len(args), len(arg.args))
	}
	copy(arg.args[:], args)
	if err := set(m.fd, KVM_ENABLE_CAP, arg); err != nil {
		return fmt.Errorf("%w (%v)", err, c)
	}
	return nil
}

// Arguments of KVM_CAP_X2APIC_API.
const (
	KVM_X2APIC_API_USE_32BIT_IDS           = 1 << 0
	KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK = 1 << 1
)

// EnableX2APIC makes APIC IDs 32 bits wide in MSIs, routes and saved local
// APICs (KVM_CAP_X2APIC_API, KVM API §7). It must come before the vCPUs.
// Destination bits 8 to 31 of an MSI are then address bits 40 to 63.
func (m *VM) EnableX2APIC() error {
	return m.EnableCap(KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS|KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK)
}

// CreateVCPU adds a processor; id is also its APIC ID (KVM API §4.7). With an
// in-kernel local APIC, id 0 starts runnable and the others wait for INIT.
func (m *VM) CreateVCPU(id int) (*VCPU, error) {
	fd, err := call(m.fd, KVM_CREATE_VCPU, uintptr(id))
	if err != nil {
		return nil, fmt.Errorf("%w (vCPU %d)", err, id)
	}
	return newVCPU(int(fd), id, m.mmapSize, m.xsaveSize)
}

// Flags of SetUserMemoryRegion.
const (
	KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
	KVM_MEM_READONLY        = 1 << 1
)

// SetUserMemoryRegion makes mem the guest's memory from gpa on, in the given
// slot (KVM API §4.35). Set again, a slot changes its flags or its gpa; with
// empty mem it goes.
//
// mem is a mapping, never memory of the Go heap, and must stay mapped until
// the slot or the VM is gone: KVM keeps the address, which the garbage
// collector does not see. Start, length and gpa are multiples of the page
// size.
func (m *VM) SetUserMemoryRegion(slot, flags uint32, gpa uint64, mem []byte) error {
	region := userMemoryRegion{slot: slot, flags: flags, guestPhysAddr: gpa, memorySize: uint64(len(mem))}
	if len(mem) > 0 {
		region.userspaceAddr = addressOf(mem)
	}
	if err := set(m.fd, KVM_SET_USER_MEMORY_REGION, region); err != nil {
		return fmt.Errorf("%w (slot %d: %d bytes at guest address %#x, flags %#x)", err, slot, len(mem), gpa, flags)
	}
	return nil
}

// SetTSSAddr gives KVM three pages of guest physical address space that it
// needs for real mode on Intel processors (KVM API §4.36). They must be below
// 4 GiB and outside every memory slot.
func (m *VM) SetTSSAddr(gpa uint32) error {
	_, err := call(m.fd, KVM_SET_TSS_ADDR, uintptr(gpa))
	return err
}

// SetIdentityMapAddr gives KVM one page of guest physical address space that
// it needs for unpaged mode on Intel processors (KVM API §4.40). It must come
// before the first vCPU.
func (m *VM) SetIdentityMapAddr(gpa uint64) error {
	return set(m.fd, KVM_SET_IDENTITY_MAP_ADDR, gpa)
}
