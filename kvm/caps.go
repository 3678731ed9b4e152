package kvm

import "fmt"

// Capability is a KVM_CAP_* number, for CheckExtension and EnableCap.
type Capability uint32

// The capabilities that this package has a use for.
const (
	KVM_CAP_IRQCHIP                   Capability = 0
	KVM_CAP_USER_MEMORY               Capability = 3
	KVM_CAP_SET_TSS_ADDR              Capability = 4
	KVM_CAP_EXT_CPUID                 Capability = 7
	KVM_CAP_NR_VCPUS                  Capability = 9
	KVM_CAP_NR_MEMSLOTS               Capability = 10
	KVM_CAP_MP_STATE                  Capability = 14
	KVM_CAP_COALESCED_MMIO            Capability = 15
	KVM_CAP_USER_NMI                  Capability = 22
	KVM_CAP_SET_GUEST_DEBUG           Capability = 23
	KVM_CAP_IRQ_ROUTING               Capability = 25
	KVM_CAP_IRQFD                     Capability = 32
	KVM_CAP_PIT2                      Capability = 33
	KVM_CAP_PIT_STATE2                Capability = 35
	KVM_CAP_IOEVENTFD                 Capability = 36
	KVM_CAP_SET_IDENTITY_MAP_ADDR     Capability = 37
	KVM_CAP_ADJUST_CLOCK              Capability = 39
	KVM_CAP_INTERNAL_ERROR_DATA       Capability = 40
	KVM_CAP_VCPU_EVENTS               Capability = 41
	KVM_CAP_DEBUGREGS                 Capability = 50
	KVM_CAP_XSAVE                     Capability = 55
	KVM_CAP_XCRS                      Capability = 56
	KVM_CAP_TSC_CONTROL               Capability = 60
	KVM_CAP_GET_TSC_KHZ               Capability = 61
	KVM_CAP_MAX_VCPUS                 Capability = 66
	KVM_CAP_TSC_DEADLINE_TIMER        Capability = 72
	KVM_CAP_KVMCLOCK_CTRL             Capability = 76
	KVM_CAP_SIGNAL_MSI                Capability = 77
	KVM_CAP_READONLY_MEM              Capability = 81
	KVM_CAP_IRQFD_RESAMPLE            Capability = 82
	KVM_CAP_ENABLE_CAP_VM             Capability = 98
	KVM_CAP_CHECK_EXTENSION_VM        Capability = 105
	KVM_CAP_SPLIT_IRQCHIP             Capability = 121
	KVM_CAP_IOEVENTFD_ANY_LENGTH      Capability = 122
	KVM_CAP_VCPU_ATTRIBUTES           Capability = 127
	KVM_CAP_MAX_VCPU_ID               Capability = 128
	KVM_CAP_X2APIC_API                Capability = 129
	KVM_CAP_IMMEDIATE_EXIT            Capability = 136
	KVM_CAP_X86_DISABLE_EXITS         Capability = 143
	KVM_CAP_GET_MSR_FEATURES          Capability = 153
	KVM_CAP_NESTED_STATE              Capability = 157
	KVM_CAP_COALESCED_PIO             Capability = 162
	KVM_CAP_EXCEPTION_PAYLOAD         Capability = 164
	KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 Capability = 168
	KVM_CAP_HALT_POLL                 Capability = 182
	KVM_CAP_X86_USER_SPACE_MSR        Capability = 188
	KVM_CAP_X86_MSR_FILTER            Capability = 189
	KVM_CAP_DIRTY_LOG_RING            Capability = 192
	KVM_CAP_SREGS2                    Capability = 200
	KVM_CAP_EXIT_ON_EMULATION_FAILURE Capability = 204
	KVM_CAP_XSAVE2                    Capability = 208
	KVM_CAP_VM_TSC_CONTROL            Capability = 214
	KVM_CAP_X86_TRIPLE_FAULT_EVENT    Capability = 218
	KVM_CAP_X86_NOTIFY_VMEXIT         Capability = 219
	KVM_CAP_DIRTY_LOG_RING_ACQ_REL    Capability = 223
	KVM_CAP_MEMORY_FAULT_INFO         Capability = 232
)

// Need says how much depends on a capability.
type Need int

// Required: no guest runs without it. Migration: guests run, but cannot be
// moved or snapshotted faithfully. Useful: something is slower or coarser.
// Optional: nothing depends on it today.
const (
	Required Need = iota
	Migration
	Useful
	Optional
)

// String is one word.
func (n Need) String() string {
	return [...]string{"required", "migration", "useful", "optional"}[n]
}

// CapabilityInfo describes a capability to a person.
type CapabilityInfo struct {
	Capability Capability
	Name       string // the kernel's
	Need       Need
	Purpose    string // what it is for
}

// Capabilities describes every capability that this package has a use for.
func Capabilities() []CapabilityInfo { return append([]CapabilityInfo(nil), capabilities[:]...) }

// MissingCapabilities describes those that this host does not have.
func (s *System) MissingCapabilities() ([]CapabilityInfo, error) {
	var missing []CapabilityInfo
	for _, c := range capabilities {
		v, err := s.CheckExtension(c.Capability)
		if err != nil {
			return nil, err
		}
		if v == 0 {
			missing = append(missing, c)
		}
	}
	return missing, nil
}

// String is the kernel's name of the capability.
func (c Capability) String() string {
	for i := range capabilities {
		if capabilities[i].Capability == c {
			return capabilities[i].Name
		}
	}
	return fmt.Sprintf("KVM capability %d", uint32(c))
}

// capabilities is read only.
var capabilities = [...]CapabilityInfo{
	{KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP", Required, "interrupt controllers in the kernel"},
	{KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY", Required, "guest memory"},
	{KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR", Required, "real mode on Intel processors"},
	{KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID", Required, "CPUID leaves with subleaves"},
	{KVM_CAP_NR_VCPUS, "KVM_CAP_NR_VCPUS", Useful, "how many vCPUs are advisable"},
	{KVM_CAP_NR_MEMSLOTS, "KVM_CAP_NR_MEMSLOTS", Useful, "how many memory slots there are"},
	{KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE", Required, "starting secondary processors, saving halted ones"},
	{KVM_CAP_COALESCED_MMIO, "KVM_CAP_COALESCED_MMIO", Optional, "batching of MMIO writes"},
	{KVM_CAP_USER_NMI, "KVM_CAP_USER_NMI", Useful, "sending a guest an NMI to make it dump"},
	{KVM_CAP_SET_GUEST_DEBUG, "KVM_CAP_SET_GUEST_DEBUG", Useful, "breakpoints and single stepping"},
	{KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING", Required, "routing of MSI-X interrupts"},
	{KVM_CAP_IRQFD, "KVM_CAP_IRQFD", Required, "interrupts by eventfd"},
	{KVM_CAP_PIT2, "KVM_CAP_PIT2", Optional, "an 8254 timer in the kernel"},
	{KVM_CAP_PIT_STATE2, "KVM_CAP_PIT_STATE2", Optional, "saving the 8254 timer"},
	{KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD", Required, "doorbells by eventfd"},
	{KVM_CAP_SET_IDENTITY_MAP_ADDR, "KVM_CAP_SET_IDENTITY_MAP_ADDR", Required, "unpaged mode on Intel processors"},
	{KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK", Migration, "saving kvmclock"},
	{KVM_CAP_INTERNAL_ERROR_DATA, "KVM_CAP_INTERNAL_ERROR_DATA", Useful, "detail in crash dumps"},
	{KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS", Migration, "saving pending exceptions and interrupts"},
	{KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS", Migration, "saving debug registers"},
	{KVM_CAP_XSAVE, "KVM_CAP_XSAVE", Migration, "saving vector registers"},
	{KVM_CAP_XCRS, "KVM_CAP_XCRS", Migration, "saving XCR0"},
	{KVM_CAP_TSC_CONTROL, "KVM_CAP_TSC_CONTROL", Useful, "moving guests between hosts of different TSC frequency"},
	{KVM_CAP_GET_TSC_KHZ, "KVM_CAP_GET_TSC_KHZ", Migration, "telling guests their TSC frequency, saving it"},
	{KVM_CAP_MAX_VCPUS, "KVM_CAP_MAX_VCPUS", Useful, "how many vCPUs are possible"},
	{KVM_CAP_TSC_DEADLINE_TIMER, "KVM_CAP_TSC_DEADLINE_TIMER", Required, "the guest's timer"},
	{KVM_CAP_KVMCLOCK_CTRL, "KVM_CAP_KVMCLOCK_CTRL", Migration, "telling guests that they were paused"},
	{KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI", Required, "interrupts of devices in user space"},
	{KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM", Useful, "read-only guest memory"},
	{KVM_CAP_IRQFD_RESAMPLE, "KVM_CAP_IRQFD_RESAMPLE", Useful, "level-triggered interrupts by eventfd"},
	{KVM_CAP_ENABLE_CAP_VM, "KVM_CAP_ENABLE_CAP_VM", Required, "the split interrupt controller"},
	{KVM_CAP_CHECK_EXTENSION_VM, "KVM_CAP_CHECK_EXTENSION_VM", Required, "capabilities of a VM"},
	{KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP", Required, "local APICs in the kernel, I/O APIC in user space"},
	{KVM_CAP_IOEVENTFD_ANY_LENGTH, "KVM_CAP_IOEVENTFD_ANY_LENGTH", Required, "doorbells of any length, the fastest"},
	{KVM_CAP_VCPU_ATTRIBUTES, "KVM_CAP_VCPU_ATTRIBUTES", Migration, "saving the TSC offset"},
	{KVM_CAP_MAX_VCPU_ID, "KVM_CAP_MAX_VCPU_ID", Useful, "the highest APIC ID"},
	{KVM_CAP_X2APIC_API, "KVM_CAP_X2APIC_API", Useful, "more than 255 vCPUs"},
	{KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", Required, "pausing a vCPU without a race"},
	{KVM_CAP_X86_DISABLE_EXITS, "KVM_CAP_X86_DISABLE_EXITS", Optional, "letting guests idle on dedicated processors"},
	{KVM_CAP_GET_MSR_FEATURES, "KVM_CAP_GET_MSR_FEATURES", Migration, "comparing the features of two hosts"},
	{KVM_CAP_NESTED_STATE, "KVM_CAP_NESTED_STATE", Optional, "moving guests that run guests"},
	{KVM_CAP_COALESCED_PIO, "KVM_CAP_COALESCED_PIO", Optional, "batching of port writes"},
	{KVM_CAP_EXCEPTION_PAYLOAD, "KVM_CAP_EXCEPTION_PAYLOAD", Migration, "saving a pending exception's payload"},
	{KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", Useful, "a dirty log that starts and clears cheaply"},
	{KVM_CAP_HALT_POLL, "KVM_CAP_HALT_POLL", Optional, "tuning of wake-up latency per VM"},
	{KVM_CAP_X86_USER_SPACE_MSR, "KVM_CAP_X86_USER_SPACE_MSR", Optional, "MSRs served by user space"},
	{KVM_CAP_X86_MSR_FILTER, "KVM_CAP_X86_MSR_FILTER", Optional, "hiding MSRs from guests"},
	{KVM_CAP_DIRTY_LOG_RING, "KVM_CAP_DIRTY_LOG_RING", Optional, "dirty pages in a ring per vCPU"},
	{KVM_CAP_SREGS2, "KVM_CAP_SREGS2", Useful, "saving 32-bit PAE guests exactly"},
	{KVM_CAP_EXIT_ON_EMULATION_FAILURE, "KVM_CAP_EXIT_ON_EMULATION_FAILURE", Optional, "code bytes in crash dumps"},
	{KVM_CAP_XSAVE2, "KVM_CAP_XSAVE2", Useful, "saving large vector state (AMX)"},
	{KVM_CAP_VM_TSC_CONTROL, "KVM_CAP_VM_TSC_CONTROL", Optional, "one TSC frequency for a whole VM"},
	{KVM_CAP_X86_TRIPLE_FAULT_EVENT, "KVM_CAP_X86_TRIPLE_FAULT_EVENT", Optional, "saving a pending triple fault"},
	{KVM_CAP_X86_NOTIFY_VMEXIT, "KVM_CAP_X86_NOTIFY_VMEXIT", Optional, "stopping guests that block interrupts in microcode"},
	{KVM_CAP_DIRTY_LOG_RING_ACQ_REL, "KVM_CAP_DIRTY_LOG_RING_ACQ_REL", Optional, "the same on hosts with weak memory ordering"},
	{KVM_CAP_MEMORY_FAULT_INFO, "KVM_CAP_MEMORY_FAULT_INFO", Useful, "the guest address of a failed memory access"},
}
