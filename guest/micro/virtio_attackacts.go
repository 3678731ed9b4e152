package micro

// This file has what VirtioAttack does in a round to registers. Each is a
// subroutine that finds the function in attackEntry and RSI and one of its
// queues in attackQueue, and may change RAX to RDX, RDI, R11, R14 and
// attackQueue.

// region sets RDX to the address of a structure, or jumps if there is none.
func (p *virtioAttack) region(kind int32, none Label) {
	p.Load(Quad, RDX, Mem{attackEntry, entryRegions + 8*kind})
	p.Test(RDX, RDX)
	p.Jcc(Equal, none)
}

// oneIn runs body in one of n cases, a power of two. It changes RBX.
func (p *virtioAttack) oneIn(n int32, body func()) {
	skip := p.NewLabel()
	p.random()
	p.Shr(RBX, 20)
	p.TestImm(RBX, n-1)
	p.Jcc(NotEqual, skip)
	body()
	p.Bind(skip)
}

// smallOrAny leaves a number up to limit, which is a power of two less one, in r,
// or now and then any. It changes RBX.
func (p *virtioAttack) smallOrAny(r Reg, limit int32) {
	p.random()
	p.Mov(r, RBX)
	p.OpImm(And, r, limit)
	p.oneIn(16, func() { p.Mov(r, attackState) })
}

// emitRegisters accesses the common configuration, the device configuration, or
// the doorbells.
func (p *virtioAttack) emitRegisters() {
	register, any, common := p.routine(p.emitRegister), p.routine(p.emitAnyCommon), p.routine(p.emitStatus)
	p.random()
	p.Mov(RCX, RBX)
	p.choose(RCX, 11, 8, func(i int) {
		switch i {
		case 0:
			p.near(regionDevice, 0x7f)
		case 1:
			p.near(regionNotify, 0x3f)
		case 2:
			p.Call(any)
		case 3:
			p.Call(common)
		default:
			p.Call(register)
		}
	})
}

// near accesses a place in a structure at random.
func (p *virtioAttack) near(kind, mask int32) {
	end := p.NewLabel()
	p.region(kind, end)
	p.random()
	p.Mov(RCX, RBX)
	p.OpImm(And, RBX, mask)
	p.Op(Add, RDX, RBX)
	p.random()
	p.poke()
	p.Bind(end)
}

// emitRegister accesses a register of the common configuration with its width.
// Queues do not get addresses of the program.
func (p *virtioAttack) emitRegister() {
	end, word, long, read := p.NewLabel(), p.NewLabel(), p.NewLabel(), p.NewLabel()
	p.region(regionCommon, end)
	p.random()
	p.Mov(RAX, RBX)
	p.OpImm(And, RAX, 0x3e)
	p.Mov(RCX, RBX)
	p.smallOrAny(RDI, attackVectors-1)
	p.OpImm(Cmp, RAX, commonMSIXVector)
	p.Jcc(Below, long)
	p.OpImm(Cmp, RAX, commonQueueDesc)
	p.Jcc(Below, word)
	p.OpImm(Or, RDI, attackArena)
	p.Bind(long)
	p.OpImm(And, RAX, -4)
	p.Op(Add, RDX, RAX)
	p.TestImm(RCX, 1<<9)
	p.Jcc(Equal, read)
	p.Store(Long, Mem{Base: RDX}, RDI)
	p.Jmp(end)
	p.Bind(read)
	p.Load(Long, RAX, Mem{Base: RDX})
	p.Jmp(end)

	p.Bind(word)
	p.Op(Add, RDX, RAX)
	p.Load(Word, RAX, Mem{Base: RDX})
	p.Store(Word, Mem{Base: RDX}, RDI)
	p.Bind(end)
}

// emitAnyCommon accesses any place in the common configuration, with any width
// where there is no address of a queue.
func (p *virtioAttack) emitAnyCommon() {
	end, other := p.NewLabel(), p.NewLabel()
	p.region(regionCommon, end)
	p.random()
	p.Mov(RCX, RBX)
	p.Mov(RAX, RBX)
	p.OpImm(And, RAX, 0x3f)
	p.Op(Add, RDX, RAX)
	p.random()
	p.OpImm(Cmp, RAX, commonQueueDesc-7)
	p.Jcc(Below, other)
	p.OpImm(Cmp, RAX, commonSize)
	p.Jcc(Below, end)
	p.Bind(other)
	p.poke()
	p.Bind(end)
}

// emitStatus resets the function, or writes any status, and reads it.
func (p *virtioAttack) emitStatus() {
	end := p.NewLabel()
	p.region(regionCommon, end)
	p.random()
	p.Mov(RDI, RBX)
	p.Shr(RDI, 12)
	p.oneIn(2, func() { p.MovImm(RDI, 0) })
	p.Store(Byte, Mem{RDX, commonStatus}, RDI)
	p.Load(Byte, RAX, Mem{RDX, commonStatus})
	p.Bind(end)
}

// emitPage accesses any place in the page of any structure or of the MSI-X
// table. Values are such that no part of them is an interrupt message but one of
// fixed delivery mode, or an address of the program.
func (p *virtioAttack) emitPage() {
	end := p.NewLabel()
	p.random()
	p.Mov(RCX, RBX)
	p.choose(RCX, 3, 8, func(i int) {
		// Two in eight go to the MSI-X table, which is kind 0.
		p.region([]int32{0, 0, regionCommon, regionNotify, regionISR, regionDevice, regionCommon, regionDevice}[i], end)
	})
	p.random()
	p.Mov(RCX, RBX)
	p.Mov(RAX, RBX)
	p.OpImm(And, RAX, 0xfff)
	p.oneIn(2, func() { p.OpImm(And, RAX, 0x7c) }) // registers, and the first vectors
	p.OpImm(And, RDX, -4096)
	p.Op(Add, RDX, RAX)
	p.random()
	p.MovImm(RAX, 0xf8f8_f8f8_f8f8_f8f8)
	p.Op(And, RBX, RAX)
	p.MovImm(RAX, 0x1010_1010_1010_1010)
	p.Op(Or, RBX, RAX)
	p.poke()
	p.Bind(end)
}

// restore gives the function its addresses back and lets it decode.
func (p *virtioAttack) restore() {
	p.MovImm(RBX, 0)
	p.writeConfig(pciCommand)
	for i := range int32(6) {
		p.Load(Long, RBX, Mem{attackEntry, entryBARs + 4*i})
		p.writeConfig(uint64(pciBAR0 + 4*i))
	}
	p.enableFunction()
}

// emitConfigSpace writes to configuration space, half of the time to a BAR or the
// command register, looks at where the function was, and mostly restores it.
func (p *virtioAttack) emitConfigSpace() {
	gone, keep := p.NewLabel(), p.NewLabel()
	p.random()
	p.Mov(RCX, RBX)
	p.Shr(RCX, 16)
	p.OpImm(And, RCX, 0xfc)
	p.oneIn(2, func() { p.OpImm(And, RCX, 0x1c) })
	p.oneIn(4, func() { p.Load(Quad, RCX, Mem{attackEntry, entryMSIXReg}) })
	p.random()
	p.Call(p.configWrite)
	p.region(regionCommon, gone)
	p.Load(Long, RAX, Mem{Base: RDX})
	p.Bind(gone)
	p.random()
	p.TestImm(RBX, 0x700)
	p.Jcc(Equal, keep)
	p.restore()
	p.Bind(keep)
}

// emitBringUp resets the function, agrees on all features, mostly, and enables
// queues that are mostly where they should be.
func (p *virtioAttack) emitBringUp() {
	end := p.NewLabel()
	p.restore()
	p.oneIn(2, p.enableMSIX)
	p.region(regionCommon, end)
	p.Mov(R11, RDX)
	p.status(0)
	p.status(statusAcknowledge)
	p.status(statusAcknowledge | statusDriver)
	for half := range int32(2) {
		p.StoreImm(Long, Mem{R11, commonDeviceFeatureSelect}, half)
		p.StoreImm(Long, Mem{R11, commonDriverFeatureSelect}, half)
		p.Load(Long, RDI, Mem{R11, commonDeviceFeature})
		p.oneIn(16, func() { p.Mov(RDI, attackState) })
		p.Store(Long, Mem{R11, commonDriverFeature}, RDI)
	}
	p.status(statusAcknowledge | statusDriver | statusFeaturesOK)
	p.smallOrAny(RDI, attackVectors-1)
	p.Store(Word, Mem{R11, commonMSIXVector}, RDI)
	p.MovImm(R14, 0)
	p.Load(Quad, attackQueue, Mem{attackEntry, entryQueues})
	queue := p.Here()
	p.placeQueue()
	p.OpImm(Add, attackQueue, attackQueueStride)
	p.Inc(R14)
	p.OpImm(Cmp, R14, attackQueueCount)
	p.Jcc(Below, queue)
	p.status(statusAcknowledge | statusDriver | statusFeaturesOK | statusDriverOK)
	p.Bind(end)
}

// enableMSIX gives a vector a message and turns MSI-X on.
func (p *virtioAttack) enableMSIX() {
	none := p.NewLabel()
	p.region(0, none)
	p.random()
	p.OpImm(And, RBX, (attackVectors-1)<<msixEntryShift)
	p.Op(Add, RDX, RBX)
	p.MovImm(RAX, attackMessage)
	p.Store(Long, Mem{RDX, 0}, RAX)
	p.StoreImm(Long, Mem{RDX, 4}, 0)
	p.StoreImm(Long, Mem{RDX, 8}, attackVector)
	p.StoreImm(Long, Mem{RDX, 12}, 0)
	p.Load(Quad, RCX, Mem{attackEntry, entryMSIXReg})
	p.MovImm(RBX, msixEnable)
	p.Call(p.configWrite)
	p.Bind(none)
}

// status writes the device status, or now and then something else. R11 is the
// common configuration.
func (p *virtioAttack) status(s int32) {
	p.MovImm(RDI, uint64(s))
	p.oneIn(64, func() { p.Mov(RDI, attackState) })
	p.Store(Byte, Mem{R11, commonStatus}, RDI)
}

// placeQueue enables queue R14 at attackQueue. R11 is the common configuration.
func (p *virtioAttack) placeQueue() {
	p.StoreImm(Long, Mem{attackQueue, attackAvail}, 0) // flags and index
	p.Store(Word, Mem{R11, commonQueueSelect}, R14)
	p.MovImm(RDI, attackQueueSize)
	p.oneIn(16, func() { p.Mov(RDI, attackState) })
	p.Store(Word, Mem{R11, commonQueueSize}, RDI)
	p.smallOrAny(RDI, attackVectors-1)
	p.Store(Word, Mem{R11, commonQueueMSIXVector}, RDI)
	for _, part := range []struct{ reg, offset int32 }{
		{commonQueueDesc, 0}, {commonQueueDriver, attackAvail}, {commonQueueDevice, attackUsed},
	} {
		p.Lea(RDI, Mem{attackQueue, part.offset})
		p.oneIn(32, func() {
			p.hostile()
			p.Mov(RDI, RBX)
		})
		p.Store(Long, Mem{R11, part.reg}, RDI)
		p.Shr(RDI, 32)
		p.Store(Long, Mem{R11, part.reg + 4}, RDI)
	}
	p.StoreImm(Word, Mem{R11, commonQueueEnable}, 1)
}
