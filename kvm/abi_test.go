package kvm

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"os"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"github.com/godwit-vmm/godwit/internal/testenv"
)

// abiStruct pairs a Go struct with the kernel's. fields pairs the names, "Go=c"
// each, in order; a C name may be a path into a member.
type abiStruct struct {
	v      any
	c      string // struct name without kvm_, or run.MEMBER for a member of the union in struct kvm_run
	fields string
}

const segmentFields = "CS=cs DS=ds ES=es FS=fs GS=gs SS=ss TR=tr LDT=ldt GDT=gdt IDT=idt CR0=cr0 CR2=cr2 CR3=cr3 CR4=cr4 CR8=cr8 EFER=efer APICBase=apic_base "

var abiStructs = []abiStruct{
	{Regs{}, "regs", "RAX=rax RBX=rbx RCX=rcx RDX=rdx RSI=rsi RDI=rdi RSP=rsp RBP=rbp R8=r8 R9=r9 R10=r10 R11=r11 R12=r12 R13=r13 R14=r14 R15=r15 RIP=rip RFLAGS=rflags"},
	{Segment{}, "segment", "Base=base Limit=limit Selector=selector Type=type Present=present DPL=dpl DB=db S=s L=l G=g AVL=avl Unusable=unusable"},
	{DTable{}, "dtable", "Base=base Limit=limit"},
	{Sregs{}, "sregs", segmentFields + "InterruptBitmap=interrupt_bitmap"},
	{Sregs2{}, "sregs2", segmentFields + "Flags=flags PDPTRs=pdptrs"},
	{FPU{}, "fpu", "FPR=fpr FCW=fcw FSW=fsw FTWX=ftwx LastOpcode=last_opcode LastIP=last_ip LastDP=last_dp XMM=xmm MXCSR=mxcsr"},
	{XCR{}, "xcr", "XCR=xcr Value=value"},
	{XCRS{}, "xcrs", "NrXCRs=nr_xcrs Flags=flags XCRs=xcrs"},
	{DebugRegs{}, "debugregs", "DB=db DR6=dr6 DR7=dr7 Flags=flags"},
	{VCPUEvents{}, "vcpu_events", "Exception=exception Exception.Injected=exception.injected Exception.Nr=exception.nr Exception.HasErrorCode=exception.has_error_code " +
		"Exception.Pending=exception.pending Exception.ErrorCode=exception.error_code Interrupt=interrupt Interrupt.Injected=interrupt.injected Interrupt.Nr=interrupt.nr " +
		"Interrupt.Soft=interrupt.soft Interrupt.Shadow=interrupt.shadow NMI=nmi NMI.Injected=nmi.injected NMI.Pending=nmi.pending NMI.Masked=nmi.masked SIPIVector=sipi_vector " +
		"Flags=flags SMI=smi SMI.SMM=smi.smm SMI.Pending=smi.pending SMI.SMMInsideNMI=smi.smm_inside_nmi SMI.LatchedInit=smi.latched_init " +
		"TripleFaultPending=triple_fault.pending ExceptionHasPayload=exception_has_payload ExceptionPayload=exception_payload"},
	{LAPICState{}, "lapic_state", "Regs=regs"},
	{MPState{}, "mp_state", "State=mp_state"},
	{MSREntry{}, "msr_entry", "Index=index Data=data"},
	{CPUIDEntry2{}, "cpuid_entry2", "Function=function Index=index Flags=flags EAX=eax EBX=ebx ECX=ecx EDX=edx"},
	{Translation{}, "translation", "LinearAddress=linear_address PhysicalAddress=physical_address Valid=valid Writeable=writeable Usermode=usermode"},
	{GuestDebug{}, "guest_debug", "Control=control DebugReg=arch.debugreg"},
	{PITChannelState{}, "pit_channel_state", "Count=count LatchedCount=latched_count CountLatched=count_latched StatusLatched=status_latched Status=status ReadState=read_state " +
		"WriteState=write_state WriteLatch=write_latch RWMode=rw_mode Mode=mode BCD=bcd Gate=gate CountLoadTime=count_load_time"},
	{PITState2{}, "pit_state2", "Channels=channels Flags=flags"},
	{IRQChip{}, "irqchip", "ChipID=chip_id Chip=chip"},
	{ClockData{}, "clock_data", "Clock=clock Flags=flags Realtime=realtime HostTSC=host_tsc"},
	{IRQRoutingEntry{}, "irq_routing_entry", "GSI=gsi Type=type Flags=flags U=u"},

	{userMemoryRegion{}, "userspace_memory_region", "slot=slot flags=flags guestPhysAddr=guest_phys_addr memorySize=memory_size userspaceAddr=userspace_addr"},
	{enableCap{}, "enable_cap", "cap=cap args=args"},
	{irqLevel{}, "irq_level", "irq=irq level=level"},
	{pitConfig{}, "pit_config", ""},
	{msi{}, "msi", "addressLo=address_lo addressHi=address_hi data=data"},
	{irqfd{}, "irqfd", "fd=fd gsi=gsi flags=flags resamplefd=resamplefd"},
	{ioeventfd{}, "ioeventfd", "datamatch=datamatch addr=addr len=len fd=fd flags=flags"},
	{irqRoutingHeader{}, "irq_routing", "nr=nr"},
	{msrsHeader{}, "msrs", "nmsrs=nmsrs"},
	{msrListHeader{}, "msr_list", "nmsrs=nmsrs"},
	{cpuidHeader{}, "cpuid2", "nent=nent"},
	{dirtyLog{}, "dirty_log", "slot=slot bitmap=dirty_bitmap"},
	{clearDirtyLog{}, "clear_dirty_log", "slot=slot numPages=num_pages firstPage=first_page bitmap=dirty_bitmap"},
	{deviceAttr{}, "device_attr", "group=group attr=attr addr=addr"},
	{dirtyGFN{}, "dirty_gfn", "flags=flags slot=slot offset=offset"},
	{coalescedZone{}, "coalesced_mmio_zone", "addr=addr size=size pio=pio"},
	{coalescedWrite{}, "coalesced_mmio", "physAddr=phys_addr len=len pio=pio data=data"},
	{coalescedRing{}, "coalesced_mmio_ring", "first=first last=last"},

	{ioExit{}, "run.io", "direction=direction size=size port=port count=count dataOffset=data_offset"},
	{mmioExit{}, "run.mmio", "physAddr=phys_addr data=data len=len isWrite=is_write"},
	{FailEntry{}, "run.fail_entry", "HardwareEntryFailureReason=hardware_entry_failure_reason CPU=cpu"},
	{Exception{}, "run.ex", "Exception=exception ErrorCode=error_code"},
	{DebugExit{}, "run.debug.arch", "Exception=exception PC=pc DR6=dr6 DR7=dr7"},
	{Hypercall{}, "run.hypercall", "NR=nr Args=args Ret=ret LongMode=longmode"},
	{TPRAccess{}, "run.tpr_access", "RIP=rip IsWrite=is_write"},
	{MSRAccess{}, "run.msr", "Error=error Reason=reason Index=index Data=data"},
	{SystemEvent{}, "run.system_event", "Type=type NData=ndata Data=data"},
	{InternalError{}, "run.internal", "Suberror=suberror NData=ndata Data=data"},
}

// cType is the C expression of the type for sizeof, and cOffset that of a
// field's offset.
func (a abiStruct) cType() string {
	if member, found := strings.CutPrefix(a.c, "run."); found {
		return "((struct kvm_run *)0)->" + member
	}
	return "struct kvm_" + a.c
}

func (a abiStruct) cOffset(field string) string {
	if member, found := strings.CutPrefix(a.c, "run."); found {
		return fmt.Sprintf("offsetof(struct kvm_run, %s.%s) - offsetof(struct kvm_run, %s)", member, field, member)
	}
	return fmt.Sprintf("offsetof(struct kvm_%s, %s)", a.c, field)
}

// goOffset is the offset of a field given by its path.
func goOffset(t *testing.T, typ reflect.Type, path string) uintptr {
	var offset uintptr
	for name := range strings.SplitSeq(path, ".") {
		f, found := typ.FieldByName(name)
		if !found {
			t.Fatalf("%v has no field %s", typ, path)
		}
		offset += f.Offset
		typ = f.Type
	}
	return offset
}

// abiConstants is every constant of the kernel's that is not an ioctl or a
// capability.
func abiConstants() map[string]uint64 {
	m := map[string]uint64{
		"KVM_API_VERSION":                                     apiVersion,
		"KVM_SREGS2_FLAGS_PDPTRS_VALID":                       KVM_SREGS2_FLAGS_PDPTRS_VALID,
		"KVM_VCPUEVENT_VALID_NMI_PENDING":                     KVM_VCPUEVENT_VALID_NMI_PENDING,
		"KVM_VCPUEVENT_VALID_SIPI_VECTOR":                     KVM_VCPUEVENT_VALID_SIPI_VECTOR,
		"KVM_VCPUEVENT_VALID_SHADOW":                          KVM_VCPUEVENT_VALID_SHADOW,
		"KVM_VCPUEVENT_VALID_SMM":                             KVM_VCPUEVENT_VALID_SMM,
		"KVM_VCPUEVENT_VALID_PAYLOAD":                         KVM_VCPUEVENT_VALID_PAYLOAD,
		"KVM_VCPUEVENT_VALID_TRIPLE_FAULT":                    KVM_VCPUEVENT_VALID_TRIPLE_FAULT,
		"KVM_X86_SHADOW_INT_MOV_SS":                           KVM_X86_SHADOW_INT_MOV_SS,
		"KVM_X86_SHADOW_INT_STI":                              KVM_X86_SHADOW_INT_STI,
		"KVM_MP_STATE_RUNNABLE":                               KVM_MP_STATE_RUNNABLE,
		"KVM_MP_STATE_UNINITIALIZED":                          KVM_MP_STATE_UNINITIALIZED,
		"KVM_MP_STATE_INIT_RECEIVED":                          KVM_MP_STATE_INIT_RECEIVED,
		"KVM_MP_STATE_HALTED":                                 KVM_MP_STATE_HALTED,
		"KVM_MP_STATE_SIPI_RECEIVED":                          KVM_MP_STATE_SIPI_RECEIVED,
		"KVM_CPUID_FLAG_SIGNIFCANT_INDEX":                     KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
		"KVM_GUESTDBG_ENABLE":                                 KVM_GUESTDBG_ENABLE,
		"KVM_GUESTDBG_SINGLESTEP":                             KVM_GUESTDBG_SINGLESTEP,
		"KVM_GUESTDBG_USE_SW_BP":                              KVM_GUESTDBG_USE_SW_BP,
		"KVM_GUESTDBG_USE_HW_BP":                              KVM_GUESTDBG_USE_HW_BP,
		"KVM_GUESTDBG_INJECT_DB":                              KVM_GUESTDBG_INJECT_DB,
		"KVM_GUESTDBG_INJECT_BP":                              KVM_GUESTDBG_INJECT_BP,
		"KVM_GUESTDBG_BLOCKIRQ":                               KVM_GUESTDBG_BLOCKIRQ,
		"KVM_IRQCHIP_PIC_MASTER":                              KVM_IRQCHIP_PIC_MASTER,
		"KVM_IRQCHIP_PIC_SLAVE":                               KVM_IRQCHIP_PIC_SLAVE,
		"KVM_IRQCHIP_IOAPIC":                                  KVM_IRQCHIP_IOAPIC,
		"KVM_IOAPIC_NUM_PINS":                                 KVM_IOAPIC_NUM_PINS,
		"KVM_CLOCK_TSC_STABLE":                                KVM_CLOCK_TSC_STABLE,
		"KVM_CLOCK_REALTIME":                                  KVM_CLOCK_REALTIME,
		"KVM_CLOCK_HOST_TSC":                                  KVM_CLOCK_HOST_TSC,
		"KVM_X2APIC_API_USE_32BIT_IDS":                        KVM_X2APIC_API_USE_32BIT_IDS,
		"KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK":              KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
		"KVM_MEM_LOG_DIRTY_PAGES":                             KVM_MEM_LOG_DIRTY_PAGES,
		"KVM_MEM_READONLY":                                    KVM_MEM_READONLY,
		"KVM_IRQ_ROUTING_IRQCHIP":                             KVM_IRQ_ROUTING_IRQCHIP,
		"KVM_IRQ_ROUTING_MSI":                                 KVM_IRQ_ROUTING_MSI,
		"KVM_IRQFD_FLAG_DEASSIGN":                             kvmIRQFDFlagDeassign,
		"KVM_IRQFD_FLAG_RESAMPLE":                             kvmIRQFDFlagResample,
		"KVM_IOEVENTFD_FLAG_DATAMATCH":                        kvmIOEventFDFlagDataMatch,
		"KVM_IOEVENTFD_FLAG_PIO":                              kvmIOEventFDFlagPIO,
		"KVM_IOEVENTFD_FLAG_DEASSIGN":                         kvmIOEventFDFlagDeassign,
		"KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE":                 KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
		"KVM_DIRTY_LOG_INITIALLY_SET":                         KVM_DIRTY_LOG_INITIALLY_SET,
		"KVM_DIRTY_GFN_F_DIRTY":                               dirtyGFNFlagDirty,
		"KVM_DIRTY_GFN_F_RESET":                               dirtyGFNFlagReset,
		"KVM_DIRTY_LOG_PAGE_OFFSET":                           dirtyLogPageOffset,
		"KVM_COALESCED_MMIO_PAGE_OFFSET":                      coalescedPageOffset,
		"KVM_VCPU_TSC_CTRL":                                   kvmVCPUTSCCtrl,
		"KVM_VCPU_TSC_OFFSET":                                 kvmVCPUTSCOffset,
		"KVM_RUN_X86_SMM":                                     KVM_RUN_X86_SMM,
		"KVM_RUN_X86_BUS_LOCK":                                KVM_RUN_X86_BUS_LOCK,
		"KVM_EXIT_IO_OUT":                                     kvmExitIOOut,
		"KVM_MSR_EXIT_REASON_INVAL":                           KVM_MSR_EXIT_REASON_INVAL,
		"KVM_MSR_EXIT_REASON_UNKNOWN":                         KVM_MSR_EXIT_REASON_UNKNOWN,
		"KVM_MSR_EXIT_REASON_FILTER":                          KVM_MSR_EXIT_REASON_FILTER,
		"KVM_SYSTEM_EVENT_SHUTDOWN":                           KVM_SYSTEM_EVENT_SHUTDOWN,
		"KVM_SYSTEM_EVENT_RESET":                              KVM_SYSTEM_EVENT_RESET,
		"KVM_SYSTEM_EVENT_CRASH":                              KVM_SYSTEM_EVENT_CRASH,
		"KVM_INTERNAL_ERROR_EMULATION":                        KVM_INTERNAL_ERROR_EMULATION,
		"KVM_INTERNAL_ERROR_SIMUL_EX":                         KVM_INTERNAL_ERROR_SIMUL_EX,
		"KVM_INTERNAL_ERROR_DELIVERY_EV":                      KVM_INTERNAL_ERROR_DELIVERY_EV,
		"KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON":           KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
		"KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES": kvmInternalErrorEmulationFlagInstructionBytes,
	}
	for _, r := range requests {
		m[r.name] = uint64(r.num)
	}
	for _, c := range capabilities {
		m[c.Name] = uint64(c.Capability)
	}
	for i, name := range exitNames {
		if name != "" {
			m["KVM_EXIT_"+name] = uint64(i)
		}
	}
	return m
}

// TestABIAgainstHeader asks a C compiler for every size, offset and number.
func TestABIAgainstHeader(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		testenv.Lacks(t, "needs a C compiler (Debian: gcc and linux-libc-dev)")
	}
	const preamble = "#include <stdio.h>\n#include <stddef.h>\n#include <linux/kvm.h>\n"
	want := map[string]uint64{} // what C prints, by name
	var c strings.Builder
	c.WriteString(preamble + "int main(void) {\n")
	for _, a := range abiStructs {
		typ := reflect.TypeOf(a.v)
		want["sizeof "+a.c] = uint64(typ.Size())
		fmt.Fprintf(&c, "printf(\"sizeof %s:%%llu\\n\", (unsigned long long)sizeof(%s));\n", a.c, a.cType())
		for pair := range strings.FieldsSeq(a.fields) {
			goName, cName, _ := strings.Cut(pair, "=")
			want["offset "+a.c+" "+cName] = uint64(goOffset(t, typ, goName))
			fmt.Fprintf(&c, "printf(\"offset %s %s:%%llu\\n\", (unsigned long long)(%s));\n", a.c, cName, a.cOffset(cName))
		}
	}
	header := map[string]string{"exitReason": "exit_reason", "readyForInterruptInjection": "ready_for_interrupt_injection",
		"ifFlag": "if_flag", "flags": "flags", "cr8": "cr8", "apicBase": "apic_base", "exit": "padding"}
	for goName, cName := range header {
		want["run "+cName] = uint64(goOffset(t, reflect.TypeFor[runHeader](), goName))
		fmt.Fprintf(&c, "printf(\"run %s:%%llu\\n\", (unsigned long long)offsetof(struct kvm_run, %s));\n", cName, cName)
	}
	want["immediate_exit bit"] = immediateExitBit
	c.WriteString("printf(\"immediate_exit bit:%d\\n\", 1 << 8 * offsetof(struct kvm_run, immediate_exit));\n")
	for name, v := range abiConstants() {
		want[name] = v
		// What the installed header is too old to know is left out.
		fmt.Fprintf(&c, "#ifdef %s\nprintf(\"%s:%%llu\\n\", (unsigned long long)%s);\n#endif\n", name, name, name)
	}
	c.WriteString("return 0;\n}\n")

	dir := t.TempDir()
	source, binary := filepath.Join(dir, "abi.c"), filepath.Join(dir, "abi")
	ok(t, os.WriteFile(source, []byte(c.String()), 0o600))
	probe := exec.Command(cc, "-fsyntax-only", "-x", "c", "-")
	probe.Stdin = strings.NewReader(preamble)
	if out, err := probe.CombinedOutput(); err != nil {
		testenv.Lacks(t, "needs <linux/kvm.h> (Debian: linux-libc-dev): %s", out)
	}
	if out, err := exec.Command(cc, "-o", binary, source).CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	out, err := exec.Command(binary).Output()
	ok(t, err)

	seen := 0
	for line := range bytes.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), ":")
		got, err := strconv.ParseUint(value, 10, 64)
		ok(t, err)
		if w, found := want[name]; !found || got != w {
			t.Errorf("%s: the header says %#x, this package %#x", name, got, w)
		}
		seen++
	}
	t.Logf("%d of %d facts checked; the header is too old for the others", seen, len(want))
	if seen < len(want)*9/10 {
		t.Errorf("only %d of %d facts checked", seen, len(want))
	}
}

// leaves lists the offset and size of every basic field of a struct, padding
// left out.
func leaves(typ reflect.Type, at uintptr) []string {
	if typ.Kind() != reflect.Struct {
		return []string{fmt.Sprintf("%d bytes at %d", typ.Size(), at)}
	}
	var list []string
	for i := range typ.NumField() {
		if f := typ.Field(i); f.Name != "_" {
			list = append(list, leaves(f.Type, at+f.Offset)...)
		}
	}
	return list
}

// TestABIAgainstGokvm compares with the structs of another Go program, which
// were written down independently.
func TestABIAgainstGokvm(t *testing.T) {
	for _, pair := range []struct{ ours, theirs any }{
		{Regs{}, gokvm.Regs{}},
		{Sregs{}, gokvm.Sregs{}},
		{Sregs2{}, gokvm.SRegs2{}},
		{Segment{}, gokvm.Segment{}},
		{DTable{}, gokvm.Descriptor{}},
		{XCRS{}, gokvm.XCRS{}},
		{DebugRegs{}, gokvm.DebugRegs{}},
		{VCPUEvents{}, gokvm.VCPUEvents{}},
		{LAPICState{}, gokvm.LAPICState{}},
		{MPState{}, gokvm.MPState{}},
		{PITState2{}, gokvm.PITState2{}},
		{IRQChip{}, gokvm.IRQChip{}},
		{ClockData{}, gokvm.ClockData{}},
		{Translation{}, gokvm.Translation{}},
		{userMemoryRegion{}, gokvm.UserspaceMemoryRegion{}},
		{dirtyLog{}, gokvm.DirtyLog{}},
	} {
		ours, theirs := reflect.TypeOf(pair.ours), reflect.TypeOf(pair.theirs)
		if ours.Size() != theirs.Size() {
			t.Errorf("%v is %d bytes, %v %d", ours, ours.Size(), theirs, theirs.Size())
		}
		if a, b := leaves(ours, 0), leaves(theirs, 0); !reflect.DeepEqual(a, b) {
			t.Errorf("%v and %v differ:\n%v\n%v", ours, theirs, a, b)
		}
	}
	// These name their padding, so only the sizes compare.
	if a, b := reflect.TypeFor[CPUIDEntry2]().Size(), reflect.TypeFor[gokvm.CPUIDEntry2]().Size(); a != b {
		t.Errorf("CPUIDEntry2 is %d bytes, gokvm's %d", a, b)
	}
	if a, b := reflect.TypeFor[MSREntry]().Size(), reflect.TypeFor[gokvm.MSREntry]().Size(); a != b {
		t.Errorf("MSREntry is %d bytes, gokvm's %d", a, b)
	}
}

// TestRequestSizes compares the size that each request number carries with the
// struct that goes with it.
func TestRequestSizes(t *testing.T) {
	for req, v := range map[Request]any{
		KVM_GET_REGS: Regs{}, KVM_SET_REGS: Regs{}, KVM_GET_SREGS: Sregs{}, KVM_SET_SREGS: Sregs{},
		KVM_GET_SREGS2: Sregs2{}, KVM_SET_SREGS2: Sregs2{}, KVM_GET_FPU: FPU{}, KVM_SET_FPU: FPU{},
		KVM_GET_XCRS: XCRS{}, KVM_SET_XCRS: XCRS{}, KVM_GET_DEBUGREGS: DebugRegs{}, KVM_SET_DEBUGREGS: DebugRegs{},
		KVM_GET_VCPU_EVENTS: VCPUEvents{}, KVM_SET_VCPU_EVENTS: VCPUEvents{}, KVM_GET_LAPIC: LAPICState{}, KVM_SET_LAPIC: LAPICState{},
		KVM_GET_MP_STATE: MPState{}, KVM_SET_MP_STATE: MPState{}, KVM_TRANSLATE: Translation{}, KVM_SET_GUEST_DEBUG: GuestDebug{},
		KVM_GET_PIT2: PITState2{}, KVM_SET_PIT2: PITState2{}, KVM_GET_IRQCHIP: IRQChip{}, KVM_SET_IRQCHIP: IRQChip{},
		KVM_GET_CLOCK: ClockData{}, KVM_SET_CLOCK: ClockData{}, KVM_SET_USER_MEMORY_REGION: userMemoryRegion{},
		KVM_ENABLE_CAP: enableCap{}, KVM_IRQ_LINE: irqLevel{}, KVM_CREATE_PIT2: pitConfig{}, KVM_SIGNAL_MSI: msi{},
		KVM_IRQFD: irqfd{}, KVM_IOEVENTFD: ioeventfd{}, KVM_SET_GSI_ROUTING: irqRoutingHeader{},
		KVM_GET_MSRS: msrsHeader{}, KVM_SET_MSRS: msrsHeader{}, KVM_GET_MSR_INDEX_LIST: msrListHeader{}, KVM_GET_MSR_FEATURE_INDEX_LIST: msrListHeader{},
		KVM_GET_SUPPORTED_CPUID: cpuidHeader{}, KVM_GET_CPUID2: cpuidHeader{}, KVM_SET_CPUID2: cpuidHeader{},
		KVM_GET_DIRTY_LOG: dirtyLog{}, KVM_CLEAR_DIRTY_LOG: clearDirtyLog{},
		KVM_SET_DEVICE_ATTR: deviceAttr{}, KVM_GET_DEVICE_ATTR: deviceAttr{}, KVM_HAS_DEVICE_ATTR: deviceAttr{},
		KVM_REGISTER_COALESCED_MMIO: coalescedZone{}, KVM_UNREGISTER_COALESCED_MMIO: coalescedZone{},
		KVM_GET_XSAVE: [xsaveMinSize]byte{}, KVM_SET_XSAVE: [xsaveMinSize]byte{}, KVM_GET_XSAVE2: [xsaveMinSize]byte{},
		KVM_SET_IDENTITY_MAP_ADDR: uint64(0),
	} {
		if got, want := uintptr(req)>>16&0x3fff, reflect.TypeOf(v).Size(); got != want {
			t.Errorf("%v carries %d bytes, %T is %d", req, got, v, want)
		}
	}
}
