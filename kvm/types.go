package kvm

// The structs in this file are passed to the kernel as they are. Each has the
// layout of the struct of <linux/kvm.h> or <asm/kvm.h> that its comment names;
// blank fields are the kernel's padding. They are plain data: gob and JSON
// take them as they are, and a copy is a copy.

// Regs is struct kvm_regs: the general purpose registers.
type Regs struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64
}

// RFLAGSFixed is the bit of RFLAGS that is always one (SDM Vol. 1 §3.4.3).
const RFLAGSFixed = 1 << 1

// Segment is struct kvm_segment: a segment register with its hidden part.
type Segment struct {
	Base     uint64
	Limit    uint32 // in bytes, whatever G says
	Selector uint16
	Type     uint8
	Present  uint8
	DPL      uint8
	DB       uint8
	S        uint8
	L        uint8
	G        uint8
	AVL      uint8
	Unusable uint8
	_        uint8
}

// DTable is struct kvm_dtable: GDTR or IDTR.
type DTable struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// Sregs is struct kvm_sregs: segment, control and system registers.
// InterruptBitmap has at most one bit set, the external interrupt that was
// acknowledged but not delivered.
type Sregs struct {
	CS, DS, ES, FS, GS, SS  Segment
	TR, LDT                 Segment
	GDT, IDT                DTable
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64
	APICBase                uint64
	InterruptBitmap         [4]uint64
}

// Sregs2 is struct kvm_sregs2: Sregs without the interrupt bitmap and with
// the page directory pointers that PAE paging keeps loaded.
type Sregs2 struct {
	CS, DS, ES, FS, GS, SS  Segment
	TR, LDT                 Segment
	GDT, IDT                DTable
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64
	APICBase                uint64
	Flags                   uint64 // KVM_SREGS2_FLAGS_PDPTRS_VALID
	PDPTRs                  [4]uint64
}

// KVM_SREGS2_FLAGS_PDPTRS_VALID says that Sregs2.PDPTRs counts.
const KVM_SREGS2_FLAGS_PDPTRS_VALID = 1

// FPU is struct kvm_fpu. It covers x87 and SSE only: a snapshot takes XSAVE.
type FPU struct {
	FPR        [8][16]uint8
	FCW        uint16
	FSW        uint16
	FTWX       uint8 // abridged, as FXSAVE has it
	_          uint8
	LastOpcode uint16
	LastIP     uint64
	LastDP     uint64
	XMM        [16][16]uint8
	MXCSR      uint32
	_          uint32
}

// XCR is struct kvm_xcr: one extended control register.
type XCR struct {
	XCR   uint32
	_     uint32
	Value uint64
}

// XCRS is struct kvm_xcrs: the first NrXCRs of XCRs count.
type XCRS struct {
	NrXCRs uint32
	Flags  uint32
	XCRs   [16]XCR
	_      [16]uint64
}

// DebugRegs is struct kvm_debugregs.
type DebugRegs struct {
	DB    [4]uint64
	DR6   uint64
	DR7   uint64
	Flags uint64
	_     [9]uint64
}

// ExceptionEvent, InterruptEvent, NMIEvent and SMIEvent are the parts of
// VCPUEvents.
type (
	// ExceptionEvent is an exception under way.
	ExceptionEvent struct {
		Injected     uint8
		Nr           uint8
		HasErrorCode uint8
		Pending      uint8
		ErrorCode    uint32
	}
	// InterruptEvent is an interrupt under way, and the interrupt shadow
	// (KVM_X86_SHADOW_INT_*).
	InterruptEvent struct {
		Injected uint8
		Nr       uint8
		Soft     uint8
		Shadow   uint8
	}
	// NMIEvent is a non-maskable interrupt under way.
	NMIEvent struct {
		Injected uint8
		Pending  uint8
		Masked   uint8
		_        uint8
	}
	// SMIEvent is a system management interrupt under way.
	SMIEvent struct {
		SMM          uint8
		Pending      uint8
		SMMInsideNMI uint8
		LatchedInit  uint8
	}
)

// VCPUEvents is struct kvm_vcpu_events: what is being delivered to the
// processor (KVM API §4.31). Flags (KVM_VCPUEVENT_VALID_*) says which parts
// count.
type VCPUEvents struct {
	Exception           ExceptionEvent
	Interrupt           InterruptEvent
	NMI                 NMIEvent
	SIPIVector          uint32
	Flags               uint32
	SMI                 SMIEvent
	TripleFaultPending  uint8
	_                   [26]uint8
	ExceptionHasPayload uint8
	ExceptionPayload    uint64
}

// Flags of VCPUEvents, and values of InterruptEvent.Shadow.
const (
	KVM_VCPUEVENT_VALID_NMI_PENDING  = 0x01
	KVM_VCPUEVENT_VALID_SIPI_VECTOR  = 0x02
	KVM_VCPUEVENT_VALID_SHADOW       = 0x04
	KVM_VCPUEVENT_VALID_SMM          = 0x08
	KVM_VCPUEVENT_VALID_PAYLOAD      = 0x10
	KVM_VCPUEVENT_VALID_TRIPLE_FAULT = 0x20

	KVM_X86_SHADOW_INT_MOV_SS = 0x01
	KVM_X86_SHADOW_INT_STI    = 0x02
)

// LAPICState is struct kvm_lapic_state: the register page of the local APIC,
// a register each 16 bytes.
type LAPICState struct {
	Regs [0x400]byte
}

// MPState is struct kvm_mp_state: what the processor is doing, one of
// KVM_MP_STATE_*.
type MPState struct {
	State uint32
}

// Values of MPState.State on x86.
const (
	KVM_MP_STATE_RUNNABLE      = 0
	KVM_MP_STATE_UNINITIALIZED = 1
	KVM_MP_STATE_INIT_RECEIVED = 2
	KVM_MP_STATE_HALTED        = 3
	KVM_MP_STATE_SIPI_RECEIVED = 4
)

// MSREntry is struct kvm_msr_entry.
type MSREntry struct {
	Index uint32
	_     uint32
	Data  uint64
}

// CPUIDEntry2 is struct kvm_cpuid_entry2: one leaf, or one subleaf of it.
type CPUIDEntry2 struct {
	Function uint32
	Index    uint32
	Flags    uint32 // KVM_CPUID_FLAG_*
	EAX      uint32
	EBX      uint32
	ECX      uint32
	EDX      uint32
	_        [3]uint32
}

// KVM_CPUID_FLAG_SIGNIFCANT_INDEX says that the leaf has subleaves, so that
// Index counts. The spelling is the kernel's.
const KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0

// Translation is struct kvm_translation.
type Translation struct {
	LinearAddress   uint64
	PhysicalAddress uint64
	Valid           uint8
	Writeable       uint8
	Usermode        uint8
	_               [5]uint8
}

// GuestDebug is struct kvm_guest_debug. Control is KVM_GUESTDBG_*.
type GuestDebug struct {
	Control  uint32
	_        uint32
	DebugReg [8]uint64
}

// Values of GuestDebug.Control.
const (
	KVM_GUESTDBG_ENABLE     = 0x1
	KVM_GUESTDBG_SINGLESTEP = 0x2
	KVM_GUESTDBG_USE_SW_BP  = 0x10000
	KVM_GUESTDBG_USE_HW_BP  = 0x20000
	KVM_GUESTDBG_INJECT_DB  = 0x40000
	KVM_GUESTDBG_INJECT_BP  = 0x80000
	KVM_GUESTDBG_BLOCKIRQ   = 0x100000
)

// PITChannelState is struct kvm_pit_channel_state: one counter of the 8254.
type PITChannelState struct {
	Count         uint32
	LatchedCount  uint16
	CountLatched  uint8
	StatusLatched uint8
	Status        uint8
	ReadState     uint8
	WriteState    uint8
	WriteLatch    uint8
	RWMode        uint8
	Mode          uint8
	BCD           uint8
	Gate          uint8
	CountLoadTime int64
}

// PITState2 is struct kvm_pit_state2.
type PITState2 struct {
	Channels [3]PITChannelState
	Flags    uint32
	_        [9]uint32
}

// IRQChip is struct kvm_irqchip: the state of one in-kernel interrupt
// controller, ChipID being one of KVM_IRQCHIP_*. Chip is opaque.
type IRQChip struct {
	ChipID uint32
	_      uint32
	Chip   [512]byte
}

// The interrupt controllers of KVM_CREATE_IRQCHIP.
const (
	KVM_IRQCHIP_PIC_MASTER = 0
	KVM_IRQCHIP_PIC_SLAVE  = 1
	KVM_IRQCHIP_IOAPIC     = 2
	KVM_IOAPIC_NUM_PINS    = 24
)

// ClockData is struct kvm_clock_data: kvmclock, and when it was read
// (KVM API §4.29).
type ClockData struct {
	Clock    uint64 // ns
	Flags    uint32 // KVM_CLOCK_*
	_        uint32
	Realtime uint64 // CLOCK_REALTIME in ns, with KVM_CLOCK_REALTIME
	HostTSC  uint64 // with KVM_CLOCK_HOST_TSC
	_        [4]uint32
}

// Flags of ClockData.
const (
	KVM_CLOCK_TSC_STABLE = 1 << 1
	KVM_CLOCK_REALTIME   = 1 << 2
	KVM_CLOCK_HOST_TSC   = 1 << 3
)

// userMemoryRegion is struct kvm_userspace_memory_region.
type userMemoryRegion struct {
	slot          uint32
	flags         uint32
	guestPhysAddr uint64
	memorySize    uint64
	userspaceAddr uint64
}

// enableCap is struct kvm_enable_cap.
type enableCap struct {
	cap  uint32
	_    uint32 // flags
	args [4]uint64
	_    [64]uint8
}

// irqLevel is struct kvm_irq_level.
type irqLevel struct {
	irq   uint32
	level uint32
}

// pitConfig is struct kvm_pit_config.
type pitConfig struct {
	_ uint32 // flags
	_ [15]uint32
}

// msi is struct kvm_msi.
type msi struct {
	addressLo uint32
	addressHi uint32
	data      uint32
	_         uint32 // flags
	_         uint32 // devid
	_         [12]uint8
}

// irqfd is struct kvm_irqfd.
type irqfd struct {
	fd         uint32
	gsi        uint32
	flags      uint32
	resamplefd uint32
	_          [16]uint8
}

// ioeventfd is struct kvm_ioeventfd.
type ioeventfd struct {
	datamatch uint64
	addr      uint64
	len       uint32
	fd        int32
	flags     uint32
	_         [36]uint8
}

// irqRoutingHeader is the fixed part of struct kvm_irq_routing.
type irqRoutingHeader struct {
	nr uint32
	_  uint32 // flags
}

// msrsHeader is the fixed part of struct kvm_msrs.
type msrsHeader struct {
	nmsrs uint32
	_     uint32
}

// msrListHeader is the fixed part of struct kvm_msr_list.
type msrListHeader struct {
	nmsrs uint32
}

// cpuidHeader is the fixed part of struct kvm_cpuid2.
type cpuidHeader struct {
	nent uint32
	_    uint32
}
