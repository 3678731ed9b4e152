package kvm

import "fmt"

// Request is an ioctl request number of KVM. It is exported for whoever
// filters ioctl by request (seccomp).
type Request uintptr

// The requests this package issues: direction, size of the argument, KVMIO
// (0xae) and number, folded as _IOC does on x86.
const (
	KVM_GET_API_VERSION            Request = 0xae00
	KVM_CREATE_VM                  Request = 0xae01
	KVM_GET_MSR_INDEX_LIST         Request = 0xc004ae02
	KVM_CHECK_EXTENSION            Request = 0xae03
	KVM_GET_VCPU_MMAP_SIZE         Request = 0xae04
	KVM_GET_SUPPORTED_CPUID        Request = 0xc008ae05
	KVM_GET_MSR_FEATURE_INDEX_LIST Request = 0xc004ae0a

	KVM_CREATE_VCPU               Request = 0xae41
	KVM_GET_DIRTY_LOG             Request = 0x4010ae42
	KVM_SET_USER_MEMORY_REGION    Request = 0x4020ae46
	KVM_SET_TSS_ADDR              Request = 0xae47
	KVM_SET_IDENTITY_MAP_ADDR     Request = 0x4008ae48
	KVM_CREATE_IRQCHIP            Request = 0xae60
	KVM_IRQ_LINE                  Request = 0x4008ae61
	KVM_GET_IRQCHIP               Request = 0xc208ae62
	KVM_SET_IRQCHIP               Request = 0x8208ae63
	KVM_REGISTER_COALESCED_MMIO   Request = 0x4010ae67
	KVM_UNREGISTER_COALESCED_MMIO Request = 0x4010ae68
	KVM_SET_GSI_ROUTING           Request = 0x4008ae6a
	KVM_IRQFD                     Request = 0x4020ae76
	KVM_CREATE_PIT2               Request = 0x4040ae77
	KVM_IOEVENTFD                 Request = 0x4040ae79
	KVM_SET_CLOCK                 Request = 0x4030ae7b
	KVM_GET_CLOCK                 Request = 0x8030ae7c
	KVM_GET_PIT2                  Request = 0x8070ae9f
	KVM_SET_PIT2                  Request = 0x4070aea0
	KVM_SET_TSC_KHZ               Request = 0xaea2
	KVM_GET_TSC_KHZ               Request = 0xaea3
	KVM_ENABLE_CAP                Request = 0x4068aea3
	KVM_SIGNAL_MSI                Request = 0x4020aea5
	KVM_CLEAR_DIRTY_LOG           Request = 0xc018aec0
	KVM_RESET_DIRTY_RINGS         Request = 0xaec7

	KVM_RUN             Request = 0xae80
	KVM_GET_REGS        Request = 0x8090ae81
	KVM_SET_REGS        Request = 0x4090ae82
	KVM_GET_SREGS       Request = 0x8138ae83
	KVM_SET_SREGS       Request = 0x4138ae84
	KVM_TRANSLATE       Request = 0xc018ae85
	KVM_GET_MSRS        Request = 0xc008ae88
	KVM_SET_MSRS        Request = 0x4008ae89
	KVM_GET_FPU         Request = 0x81a0ae8c
	KVM_SET_FPU         Request = 0x41a0ae8d
	KVM_GET_LAPIC       Request = 0x8400ae8e
	KVM_SET_LAPIC       Request = 0x4400ae8f
	KVM_SET_CPUID2      Request = 0x4008ae90
	KVM_GET_CPUID2      Request = 0xc008ae91
	KVM_GET_MP_STATE    Request = 0x8004ae98
	KVM_SET_MP_STATE    Request = 0x4004ae99
	KVM_NMI             Request = 0xae9a
	KVM_SET_GUEST_DEBUG Request = 0x4048ae9b
	KVM_GET_VCPU_EVENTS Request = 0x8040ae9f
	KVM_SET_VCPU_EVENTS Request = 0x4040aea0
	KVM_GET_DEBUGREGS   Request = 0x8080aea1
	KVM_SET_DEBUGREGS   Request = 0x4080aea2
	KVM_GET_XSAVE       Request = 0x9000aea4
	KVM_SET_XSAVE       Request = 0x5000aea5
	KVM_GET_XCRS        Request = 0x8188aea6
	KVM_SET_XCRS        Request = 0x4188aea7
	KVM_KVMCLOCK_CTRL   Request = 0xaead
	KVM_GET_SREGS2      Request = 0x8140aecc
	KVM_SET_SREGS2      Request = 0x4140aecd
	KVM_GET_XSAVE2      Request = 0x9000aecf
	KVM_SET_DEVICE_ATTR Request = 0x4018aee1
	KVM_GET_DEVICE_ATTR Request = 0x4018aee2
	KVM_HAS_DEVICE_ATTR Request = 0x4018aee3
)

// String is the kernel's name of the request.
func (r Request) String() string {
	for i := range requests {
		if requests[i].num == r {
			return requests[i].name
		}
	}
	return fmt.Sprintf("ioctl %#x", uintptr(r))
}

// Requests lists every request this package can issue.
func Requests() []Request {
	list := make([]Request, len(requests))
	for i := range requests {
		list[i] = requests[i].num
	}
	return list
}

// requests is read only. It is an array and not a map so that it costs
// nothing at start-up; only error messages search it.
var requests = [...]struct {
	num  Request
	name string
}{
	{KVM_GET_API_VERSION, "KVM_GET_API_VERSION"},
	{KVM_CREATE_VM, "KVM_CREATE_VM"},
	{KVM_GET_MSR_INDEX_LIST, "KVM_GET_MSR_INDEX_LIST"},
	{KVM_CHECK_EXTENSION, "KVM_CHECK_EXTENSION"},
	{KVM_GET_VCPU_MMAP_SIZE, "KVM_GET_VCPU_MMAP_SIZE"},
	{KVM_GET_SUPPORTED_CPUID, "KVM_GET_SUPPORTED_CPUID"},
	{KVM_GET_MSR_FEATURE_INDEX_LIST, "KVM_GET_MSR_FEATURE_INDEX_LIST"},
	{KVM_CREATE_VCPU, "KVM_CREATE_VCPU"},
	{KVM_GET_DIRTY_LOG, "KVM_GET_DIRTY_LOG"},
	{KVM_SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION"},
	{KVM_SET_TSS_ADDR, "KVM_SET_TSS_ADDR"},
	{KVM_SET_IDENTITY_MAP_ADDR, "KVM_SET_IDENTITY_MAP_ADDR"},
	{KVM_CREATE_IRQCHIP, "KVM_CREATE_IRQCHIP"},
	{KVM_IRQ_LINE, "KVM_IRQ_LINE"},
	{KVM_GET_IRQCHIP, "KVM_GET_IRQCHIP"},
	{KVM_SET_IRQCHIP, "KVM_SET_IRQCHIP"},
	{KVM_REGISTER_COALESCED_MMIO, "KVM_REGISTER_COALESCED_MMIO"},
	{KVM_UNREGISTER_COALESCED_MMIO, "KVM_UNREGISTER_COALESCED_MMIO"},
	{KVM_SET_GSI_ROUTING, "KVM_SET_GSI_ROUTING"},
	{KVM_IRQFD, "KVM_IRQFD"},
	{KVM_CREATE_PIT2, "KVM_CREATE_PIT2"},
	{KVM_IOEVENTFD, "KVM_IOEVENTFD"},
	{KVM_SET_CLOCK, "KVM_SET_CLOCK"},
	{KVM_GET_CLOCK, "KVM_GET_CLOCK"},
	{KVM_GET_PIT2, "KVM_GET_PIT2"},
	{KVM_SET_PIT2, "KVM_SET_PIT2"},
	{KVM_SET_TSC_KHZ, "KVM_SET_TSC_KHZ"},
	{KVM_GET_TSC_KHZ, "KVM_GET_TSC_KHZ"},
	{KVM_ENABLE_CAP, "KVM_ENABLE_CAP"},
	{KVM_SIGNAL_MSI, "KVM_SIGNAL_MSI"},
	{KVM_CLEAR_DIRTY_LOG, "KVM_CLEAR_DIRTY_LOG"},
	{KVM_RESET_DIRTY_RINGS, "KVM_RESET_DIRTY_RINGS"},
	{KVM_RUN, "KVM_RUN"},
	{KVM_GET_REGS, "KVM_GET_REGS"},
	{KVM_SET_REGS, "KVM_SET_REGS"},
	{KVM_GET_SREGS, "KVM_GET_SREGS"},
	{KVM_SET_SREGS, "KVM_SET_SREGS"},
	{KVM_TRANSLATE, "KVM_TRANSLATE"},
	{KVM_GET_MSRS, "KVM_GET_MSRS"},
	{KVM_SET_MSRS, "KVM_SET_MSRS"},
	{KVM_GET_FPU, "KVM_GET_FPU"},
	{KVM_SET_FPU, "KVM_SET_FPU"},
	{KVM_GET_LAPIC, "KVM_GET_LAPIC"},
	{KVM_SET_LAPIC, "KVM_SET_LAPIC"},
	{KVM_SET_CPUID2, "KVM_SET_CPUID2"},
	{KVM_GET_CPUID2, "KVM_GET_CPUID2"},
	{KVM_GET_MP_STATE, "KVM_GET_MP_STATE"},
	{KVM_SET_MP_STATE, "KVM_SET_MP_STATE"},
	{KVM_NMI, "KVM_NMI"},
	{KVM_SET_GUEST_DEBUG, "KVM_SET_GUEST_DEBUG"},
	{KVM_GET_VCPU_EVENTS, "KVM_GET_VCPU_EVENTS"},
	{KVM_SET_VCPU_EVENTS, "KVM_SET_VCPU_EVENTS"},
	{KVM_GET_DEBUGREGS, "KVM_GET_DEBUGREGS"},
	{KVM_SET_DEBUGREGS, "KVM_SET_DEBUGREGS"},
	{KVM_GET_XSAVE, "KVM_GET_XSAVE"},
	{KVM_SET_XSAVE, "KVM_SET_XSAVE"},
	{KVM_GET_XCRS, "KVM_GET_XCRS"},
	{KVM_SET_XCRS, "KVM_SET_XCRS"},
	{KVM_KVMCLOCK_CTRL, "KVM_KVMCLOCK_CTRL"},
	{KVM_GET_SREGS2, "KVM_GET_SREGS2"},
	{KVM_SET_SREGS2, "KVM_SET_SREGS2"},
	{KVM_GET_XSAVE2, "KVM_GET_XSAVE2"},
	{KVM_SET_DEVICE_ATTR, "KVM_SET_DEVICE_ATTR"},
	{KVM_GET_DEVICE_ATTR, "KVM_GET_DEVICE_ATTR"},
	{KVM_HAS_DEVICE_ATTR, "KVM_HAS_DEVICE_ATTR"},
}
