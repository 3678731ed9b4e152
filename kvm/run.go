package kvm

import "fmt"

// ExitReason is why Run returned.
type ExitReason uint32

// The exit reasons of x86.
const (
	KVM_EXIT_UNKNOWN         ExitReason = 0
	KVM_EXIT_EXCEPTION       ExitReason = 1
	KVM_EXIT_IO              ExitReason = 2
	KVM_EXIT_HYPERCALL       ExitReason = 3
	KVM_EXIT_DEBUG           ExitReason = 4
	KVM_EXIT_HLT             ExitReason = 5
	KVM_EXIT_MMIO            ExitReason = 6
	KVM_EXIT_IRQ_WINDOW_OPEN ExitReason = 7
	KVM_EXIT_SHUTDOWN        ExitReason = 8
	KVM_EXIT_FAIL_ENTRY      ExitReason = 9
	KVM_EXIT_INTR            ExitReason = 10
	KVM_EXIT_SET_TPR         ExitReason = 11
	KVM_EXIT_TPR_ACCESS      ExitReason = 12
	KVM_EXIT_NMI             ExitReason = 16
	KVM_EXIT_INTERNAL_ERROR  ExitReason = 17
	KVM_EXIT_WATCHDOG        ExitReason = 21
	KVM_EXIT_SYSTEM_EVENT    ExitReason = 24
	KVM_EXIT_IOAPIC_EOI      ExitReason = 26
	KVM_EXIT_HYPERV          ExitReason = 27
	KVM_EXIT_X86_RDMSR       ExitReason = 29
	KVM_EXIT_X86_WRMSR       ExitReason = 30
	KVM_EXIT_DIRTY_RING_FULL ExitReason = 31
	KVM_EXIT_AP_RESET_HOLD   ExitReason = 32
	KVM_EXIT_X86_BUS_LOCK    ExitReason = 33
	KVM_EXIT_XEN             ExitReason = 34
	KVM_EXIT_NOTIFY          ExitReason = 37
	KVM_EXIT_MEMORY_FAULT    ExitReason = 39
)

// String is the kernel's name of the reason.
func (r ExitReason) String() string {
	if int(r) < len(exitNames) && exitNames[r] != "" {
		return "KVM_EXIT_" + exitNames[r]
	}
	return fmt.Sprintf("KVM exit %d", uint32(r))
}

var exitNames = [...]string{
	KVM_EXIT_UNKNOWN:         "UNKNOWN",
	KVM_EXIT_EXCEPTION:       "EXCEPTION",
	KVM_EXIT_IO:              "IO",
	KVM_EXIT_HYPERCALL:       "HYPERCALL",
	KVM_EXIT_DEBUG:           "DEBUG",
	KVM_EXIT_HLT:             "HLT",
	KVM_EXIT_MMIO:            "MMIO",
	KVM_EXIT_IRQ_WINDOW_OPEN: "IRQ_WINDOW_OPEN",
	KVM_EXIT_SHUTDOWN:        "SHUTDOWN",
	KVM_EXIT_FAIL_ENTRY:      "FAIL_ENTRY",
	KVM_EXIT_INTR:            "INTR",
	KVM_EXIT_SET_TPR:         "SET_TPR",
	KVM_EXIT_TPR_ACCESS:      "TPR_ACCESS",
	KVM_EXIT_NMI:             "NMI",
	KVM_EXIT_INTERNAL_ERROR:  "INTERNAL_ERROR",
	KVM_EXIT_WATCHDOG:        "WATCHDOG",
	KVM_EXIT_SYSTEM_EVENT:    "SYSTEM_EVENT",
	KVM_EXIT_IOAPIC_EOI:      "IOAPIC_EOI",
	KVM_EXIT_HYPERV:          "HYPERV",
	KVM_EXIT_X86_RDMSR:       "X86_RDMSR",
	KVM_EXIT_X86_WRMSR:       "X86_WRMSR",
	KVM_EXIT_DIRTY_RING_FULL: "DIRTY_RING_FULL",
	KVM_EXIT_AP_RESET_HOLD:   "AP_RESET_HOLD",
	KVM_EXIT_X86_BUS_LOCK:    "X86_BUS_LOCK",
	KVM_EXIT_XEN:             "XEN",
	KVM_EXIT_NOTIFY:          "NOTIFY",
	KVM_EXIT_MEMORY_FAULT:    "MEMORY_FAULT",
}

// runHeader is struct kvm_run up to the end of its union (KVM API §5).
type runHeader struct {
	control                    uint32 // request_interrupt_window, immediate_exit
	_                          uint32
	exitReason                 uint32
	readyForInterruptInjection uint8
	ifFlag                     uint8
	flags                      uint16
	cr8                        uint64
	apicBase                   uint64
	exit                       [256]byte
}

// ExitReason is why the last Run returned without error.
func (v *VCPU) ExitReason() ExitReason { return ExitReason(v.header().exitReason) }

// SetImmediateExit makes the next Run, or one that has not yet entered the
// guest, return EINTR at once. Any goroutine may call it. To stop a guest
// that runs, set it and then send the vCPU thread a signal. KVM never clears
// it.
func (v *VCPU) SetImmediateExit(on bool) { v.setControl(immediateExitBit, on) }

// SetRequestInterruptWindow asks for KVM_EXIT_IRQ_WINDOW_OPEN as soon as the
// guest can take an interrupt. For use without an in-kernel local APIC.
func (v *VCPU) SetRequestInterruptWindow(on bool) { v.setControl(requestInterruptWindowBit, on) }

// ReadyForInterruptInjection tells, after Run, whether the guest can take an
// interrupt.
func (v *VCPU) ReadyForInterruptInjection() bool {
	return v.header().readyForInterruptInjection != 0
}

// InterruptFlag is the guest's RFLAGS.IF after Run.
func (v *VCPU) InterruptFlag() bool { return v.header().ifFlag != 0 }

// RunFlags is the architecture's flags of the exit (KVM_RUN_X86_*).
func (v *VCPU) RunFlags() uint16 { return v.header().flags }

// Flags of RunFlags.
const (
	KVM_RUN_X86_SMM      = 1 << 0
	KVM_RUN_X86_BUS_LOCK = 1 << 1
)

// The accessors below are valid for their exit reason, until the next Run.
// Slices and pointers that they return lead into memory shared with the
// kernel; answers to the guest are written there, and reach it with the next
// Run. None allocates.

// IO is an access to a port. Data holds Count values of Size bytes each, and a
// read is answered there.
type IO struct {
	Port  uint16
	Size  int // 1, 2 or 4 bytes
	Count int // more than 1 for INS and OUTS
	Write bool
	Data  []byte
}

type ioExit struct {
	direction  uint8
	size       uint8
	port       uint16
	count      uint32
	dataOffset uint64
}

const kvmExitIOOut = 1

// IO is the access of KVM_EXIT_IO. Data is nil where what the kernel says
// does not fit the shared area, which is a bug of the kernel.
func (v *VCPU) IO() IO {
	e := exit[ioExit](v)
	io := IO{
		Port:  e.port,
		Size:  int(e.size),
		Count: int(e.count),
		Write: e.direction == kvmExitIOOut,
	}
	// Neither factor can overflow the product: 8 bits by 32.
	length, area := uint64(e.size)*uint64(e.count), uint64(len(v.run))
	if e.dataOffset <= area && length <= area-e.dataOffset {
		io.Data = v.run[e.dataOffset:][:length:length]
	}
	return io
}

// MMIO is an access to a guest physical address without memory. Data is 1 to 8
// bytes; a read is answered there.
type MMIO struct {
	Addr  uint64
	Write bool
	Data  []byte
}

type mmioExit struct {
	physAddr uint64
	data     [8]byte
	len      uint32
	isWrite  uint8
}

// MMIO is the access of KVM_EXIT_MMIO.
func (v *VCPU) MMIO() MMIO {
	e := exit[mmioExit](v)
	n := min(e.len, uint32(len(e.data)))
	return MMIO{Addr: e.physAddr, Write: e.isWrite != 0, Data: e.data[:n:n]}
}

// IOAPICEOI is the vector that the guest ended the interrupt of, for
// KVM_EXIT_IOAPIC_EOI.
func (v *VCPU) IOAPICEOI() uint8 { return *exit[uint8](v) }

// HardwareExitReason is what the processor said, for KVM_EXIT_UNKNOWN.
func (v *VCPU) HardwareExitReason() uint64 { return *exit[uint64](v) }

// FailEntry is the processor's refusal to enter the guest.
type FailEntry struct {
	HardwareEntryFailureReason uint64
	CPU                        uint32 // the host's
	_                          uint32
}

// FailEntry is the detail of KVM_EXIT_FAIL_ENTRY.
func (v *VCPU) FailEntry() *FailEntry { return exit[FailEntry](v) }

// Exception is the detail of KVM_EXIT_EXCEPTION.
type Exception struct {
	Exception uint32
	ErrorCode uint32
}

// Exception is the detail of KVM_EXIT_EXCEPTION.
func (v *VCPU) Exception() *Exception { return exit[Exception](v) }

// DebugExit is a breakpoint or single step of the debugger.
type DebugExit struct {
	Exception uint32
	_         uint32
	PC        uint64
	DR6       uint64
	DR7       uint64
}

// Debug is the detail of KVM_EXIT_DEBUG.
func (v *VCPU) Debug() *DebugExit { return exit[DebugExit](v) }

// Hypercall is a hypercall for user space. Ret is the answer.
type Hypercall struct {
	NR       uint64
	Args     [6]uint64
	Ret      uint64
	LongMode uint32
	_        uint32
}

// Hypercall is the detail of KVM_EXIT_HYPERCALL.
func (v *VCPU) Hypercall() *Hypercall { return exit[Hypercall](v) }

// TPRAccess is an access to the task priority register.
type TPRAccess struct {
	RIP     uint64
	IsWrite uint32
	_       uint32
}

// TPRAccess is the detail of KVM_EXIT_TPR_ACCESS.
func (v *VCPU) TPRAccess() *TPRAccess { return exit[TPRAccess](v) }

// MSRAccess is an access to an MSR that user space handles. A read is
// answered in Data; Error other than 0 makes the guest's access fault.
type MSRAccess struct {
	Error  uint8
	_      [7]uint8
	Reason uint32 // KVM_MSR_EXIT_REASON_*
	Index  uint32
	Data   uint64
}

// Values of MSRAccess.Reason.
const (
	KVM_MSR_EXIT_REASON_INVAL   = 1 << 0
	KVM_MSR_EXIT_REASON_UNKNOWN = 1 << 1
	KVM_MSR_EXIT_REASON_FILTER  = 1 << 2
)

// MSR is the detail of KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR.
func (v *VCPU) MSR() *MSRAccess { return exit[MSRAccess](v) }

// MemoryFault is an access to guest memory that the host could not serve. Run
// fails with EFAULT or EHWPOISON at the same time.
type MemoryFault struct {
	Flags uint64
	GPA   uint64
	Size  uint64
}

// MemoryFault is the detail of KVM_EXIT_MEMORY_FAULT.
func (v *VCPU) MemoryFault() *MemoryFault { return exit[MemoryFault](v) }

// NotifyFlags is the detail of KVM_EXIT_NOTIFY.
func (v *VCPU) NotifyFlags() uint32 { return *exit[uint32](v) }

// SystemEvent is a request of the guest for the machine as a whole.
type SystemEvent struct {
	Type  uint32 // KVM_SYSTEM_EVENT_*
	NData uint32
	Data  [16]uint64
}

// Values of SystemEvent.Type.
const (
	KVM_SYSTEM_EVENT_SHUTDOWN = 1
	KVM_SYSTEM_EVENT_RESET    = 2
	KVM_SYSTEM_EVENT_CRASH    = 3
)

// SystemEvent is the detail of KVM_EXIT_SYSTEM_EVENT.
func (v *VCPU) SystemEvent() *SystemEvent { return exit[SystemEvent](v) }

// InternalError is KVM giving up on the guest.
type InternalError struct {
	Suberror uint32 // KVM_INTERNAL_ERROR_*
	NData    uint32
	Data     [16]uint64
}

// Values of InternalError.Suberror.
const (
	KVM_INTERNAL_ERROR_EMULATION              = 1
	KVM_INTERNAL_ERROR_SIMUL_EX               = 2
	KVM_INTERNAL_ERROR_DELIVERY_EV            = 3
	KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4
)

const kvmInternalErrorEmulationFlagInstructionBytes = 1 << 0

// InternalError is the detail of KVM_EXIT_INTERNAL_ERROR.
func (v *VCPU) InternalError() *InternalError { return exit[InternalError](v) }

// Values is the part of Data that KVM filled in.
func (e *InternalError) Values() []uint64 { return e.Data[:min(int(e.NData), len(e.Data))] }

// Instruction is the bytes from the instruction on that KVM could not emulate,
// up to 15, or nothing where KVM does not say. It allocates.
func (e *InternalError) Instruction() []byte {
	// struct emulation_failure: flags, insn_size, insn_bytes[15].
	if e.Suberror != KVM_INTERNAL_ERROR_EMULATION || e.NData < 3 ||
		e.Data[0]&kvmInternalErrorEmulationFlagInstructionBytes == 0 {
		return nil
	}
	var raw [16]byte
	for i := range raw {
		raw[i] = byte(e.Data[1+i/8] >> (i % 8 * 8))
	}
	n := min(int(raw[0]), len(raw)-1)
	return append([]byte(nil), raw[1:1+n]...)
}
