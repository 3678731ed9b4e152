package micro

// Where the parts of the stub page lie. It holds the descriptor tables, the
// code that leads from the PVH entry to ring 3, and the stack of ring 0.
const (
	systemStart  = 0x10_0000
	gdtStart     = systemStart
	gdtPointer   = systemStart + 0x050 // operands of LGDT and LIDT
	idtPointer   = systemStart + 0x060
	emptyPointer = systemStart + 0x070 // all zero
	tssStart     = systemStart + 0x080
	idtStart     = systemStart + 0x100
	stubStart    = systemStart + 0x300
	kernelStack  = ioBitmap
	// ioBitmap is the I/O permission bitmap, all zero, and one byte that
	// an access to the last port reaches into. It covers two pages of its
	// own but for a few bytes.
	ioBitmap     = systemStart + pageSize - 16
	ioBitmapSize = 1<<16/8 + 1
	tssLimit     = ioBitmap + ioBitmapSize - 1 - tssStart
)

// Register values that the stub sets (SDM vol. 3 §2.5 and §2.2.1).
const (
	cr0Value     = 1<<31 | 1<<16 | 1<<5 | 1<<4 | 1<<1 | 1 // PG WP NE ET MP PE
	cr4Value     = 1<<10 | 1<<9 | 1<<5                    // OSXMMEXCPT OSFXSR PAE
	msrEFER      = 0xc000_0080
	eferValue    = 1 << 8 // LME
	msrSysenter  = 0x174  // IA32_SYSENTER_CS
	rflagsValue  = 3<<12 | 1<<1
	vectorUD     = 6
	vectors      = 32 // exceptions; interrupts never come
	vectorsError = 1<<8 | 1<<10 | 1<<11 | 1<<12 | 1<<13 | 1<<14 | 1<<17 | 1<<21 | 1<<29 | 1<<30
)

// stubCode assembles the code at stubStart, which is also the PVH entry, and
// returns the offset of the handler of each exception.
//
// The processor comes in 32-bit protected mode without paging and with EBX
// pointing to hvm_start_info (Xen, docs/misc/pvh.pandoc). Until the far jump
// only instructions that mean the same in both modes come from the assembler.
func stubCode() (code []byte, handlers [vectors]int, err error) {
	var a Asm
	a.Data(0x89, 0xdf) // mov edi, ebx
	a.Data(0x0f, 0x01, 0x15)
	a.imm32(gdtPointer) // lgdt [gdtPointer]
	a.MovImm(RAX, cr4Value)
	a.Data(0x0f, 0x22, 0xe0) // mov cr4, eax
	a.MovImm(RAX, pml4Start)
	a.Data(0x0f, 0x22, 0xd8) // mov cr3, eax
	a.MovImm(RDX, 0)
	a.wrmsr(msrEFER, eferValue)
	a.MovImm(RAX, cr0Value)
	a.Data(0x0f, 0x22, 0xc0) // mov cr0, eax
	a.Data(0xea)
	a.imm32(uint32(stubStart + len(a.code) + 6))
	a.Data(selKernelCode, 0) // jmp selKernelCode:next

	a.lidt(idtPointer)
	a.MovImm(RAX, selTSS)
	a.Data(0x0f, 0x00, 0xd8) // ltr ax
	a.MovImm(RSP, kernelStack)
	a.PushImm(rflagsValue)
	a.Data(0x9d) // popfq

	// SYSEXIT is the one way to ring 3 that KVM's instruction emulator
	// knows. AMD processors refuse it in 64-bit mode with #UD, and the
	// handler of that goes on with IRETQ, which the emulator does not know.
	a.wrmsr(msrSysenter, selKernelCode)
	a.MovImm(RDX, CodeStart)
	a.MovImm(RCX, StackTop)
	sysexit := a.Here()
	a.Data(0x48, 0x0f, 0x35)

	report := a.NewLabel()
	for v := range handlers {
		handlers[v] = len(a.code)
		if vectorsError>>v&1 == 0 {
			a.PushImm(0)
		}
		a.PushImm(int32(v))
		a.Jmp(report)
	}
	a.Bind(report)
	a.reportFault(sysexit)

	code, err = a.Assemble()
	return code, handlers, err
}

// reportFault is what every exception comes to, with the vector and the error
// code pushed onto the processor's exception frame.
func (a *Asm) reportFault(sysexit Label) {
	fault := a.NewLabel()
	a.Pop(RAX)
	a.Load(Quad, RBX, Mem{RSP, 8}) // RIP
	a.OpImm(Cmp, RAX, vectorUD)
	a.Jcc(NotEqual, fault)
	a.LeaLabel(RSI, sysexit)
	a.Op(Cmp, RBX, RSI)
	a.Jcc(NotEqual, fault)

	a.PushImm(selUserStack)
	a.PushImm(StackTop)
	a.PushImm(rflagsValue)
	a.PushImm(selUserCode)
	a.PushImm(CodeStart)
	a.Data(0x48, 0xcf) // iretq

	a.Bind(fault)
	a.Pop(RCX)
	a.Data(0x0f, 0x20, 0xd2) // mov rdx, cr2
	a.OutImm(Byte, FaultPort)
	a.lidt(emptyPointer)
	a.Ud2()
}

// wrmsr writes value to an MSR. RDX is zero already.
func (a *Asm) wrmsr(msr, value uint64) {
	a.MovImm(RCX, msr)
	a.MovImm(RAX, value)
	a.Data(0x0f, 0x30)
}

// lidt loads the IDT register, in 64-bit mode.
func (a *Asm) lidt(pointer uint32) {
	a.Data(0x0f, 0x01, 0x1c, 0x25)
	a.imm32(pointer)
}
