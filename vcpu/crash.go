package vcpu

import (
	"fmt"
	"strings"

	"github.com/godwit-vmm/godwit/kvm"
)

// Crash is the end of a guest that cannot go on: what happened, and the state
// of the processor at that point.
type Crash struct {
	// CPU is the processor that it happened on.
	CPU int
	// Reason says in one line what happened.
	Reason string
	// Err is the error of a failed call, or nil.
	Err error
	// Exit is KVM's exit reason.
	Exit kvm.ExitReason
	// ExitData are the raw words that KVM gave with an internal error.
	ExitData []uint64
	// Regs and Sregs are the registers, as far as KVM could tell them.
	Regs  kvm.Regs
	Sregs kvm.Sregs
	// Code are the bytes at RIP, empty if they cannot be read.
	Code []byte
}

// codeBytes is how much of the code at RIP a dump shows: a longest instruction
// is 15 bytes.
const codeBytes = 16

func (v *VCPU) crash(reason string, err error) *Crash {
	c := &Crash{CPU: v.cfg.ID, Reason: reason, Err: err, Exit: v.cpu.ExitReason()}
	if c.Exit == kvm.KVM_EXIT_INTERNAL_ERROR {
		c.ExitData = append(c.ExitData, v.cpu.InternalError().Values()...)
	}
	// The dump is best effort: what cannot be read stays zero.
	c.Regs, _ = v.cpu.GetRegs()
	c.Sregs, _ = v.cpu.GetSregs()
	c.Code = v.code(c.Regs.RIP, &c.Sregs)
	return c
}

// code reads the instruction bytes at rip through the guest's page tables.
func (v *VCPU) code(rip uint64, s *kvm.Sregs) []byte {
	if v.cfg.ReadMemory == nil {
		return nil
	}
	const efer = 1 << 10 // EFER.LMA: in 64-bit mode segment bases do not count
	linear := rip
	if s.EFER&efer == 0 {
		linear += s.CS.Base
	}
	t, err := v.cpu.Translate(linear)
	if err != nil || t.Valid == 0 {
		return nil
	}
	code := make([]byte, codeBytes)
	// A dump near the end of a page shows fewer bytes rather than none.
	code = code[:min(codeBytes, 4096-t.PhysicalAddress%4096)]
	if v.cfg.ReadMemory(t.PhysicalAddress, code) != nil {
		return nil
	}
	return code
}

// Error is one line: what happened and where.
func (c *Crash) Error() string {
	s := fmt.Sprintf("vCPU %d at rip %#x: %s", c.CPU, c.Regs.RIP, c.Reason)
	if c.Err != nil {
		s += ": " + c.Err.Error()
	}
	return s
}

// Unwrap is the error of the failed call.
func (c *Crash) Unwrap() error { return c.Err }

// Dump is the state of the processor in several lines, for a person.
func (c *Crash) Dump() string {
	var b strings.Builder
	r, s := &c.Regs, &c.Sregs
	fmt.Fprintf(&b, "vCPU %d: %s\n", c.CPU, c.Reason)
	fmt.Fprintf(&b, "exit %v", c.Exit)
	if len(c.ExitData) > 0 {
		fmt.Fprintf(&b, " data %#x", c.ExitData)
	}
	fmt.Fprintf(&b, "\nrip %016x  rflags %016x\n", r.RIP, r.RFLAGS)
	fmt.Fprintf(&b, "rax %016x  rbx %016x  rcx %016x  rdx %016x\n", r.RAX, r.RBX, r.RCX, r.RDX)
	fmt.Fprintf(&b, "rsi %016x  rdi %016x  rbp %016x  rsp %016x\n", r.RSI, r.RDI, r.RBP, r.RSP)
	fmt.Fprintf(&b, "r8  %016x  r9  %016x  r10 %016x  r11 %016x\n", r.R8, r.R9, r.R10, r.R11)
	fmt.Fprintf(&b, "r12 %016x  r13 %016x  r14 %016x  r15 %016x\n", r.R12, r.R13, r.R14, r.R15)
	fmt.Fprintf(&b, "cr0 %x cr2 %x cr3 %x cr4 %x efer %x apic base %x\n", s.CR0, s.CR2, s.CR3, s.CR4, s.EFER, s.APICBase)
	for _, seg := range []struct {
		name string
		kvm.Segment
	}{{"cs", s.CS}, {"ss", s.SS}, {"ds", s.DS}, {"es", s.ES}, {"fs", s.FS}, {"gs", s.GS}, {"tr", s.TR}, {"ldt", s.LDT}} {
		fmt.Fprintf(&b, "%-3s %04x base %016x limit %08x type %x dpl %d l %d db %d present %d\n",
			seg.name, seg.Selector, seg.Base, seg.Limit, seg.Type, seg.DPL, seg.L, seg.DB, seg.Present)
	}
	fmt.Fprintf(&b, "gdt %016x limit %x  idt %016x limit %x\n", s.GDT.Base, s.GDT.Limit, s.IDT.Base, s.IDT.Limit)
	if len(c.Code) > 0 {
		fmt.Fprintf(&b, "code % x\n", c.Code)
	} else {
		b.WriteString("code cannot be read at rip\n")
	}
	return b.String()
}
