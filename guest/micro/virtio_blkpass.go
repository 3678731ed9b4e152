package micro

import "math/bits"

// emitPass is the subroutine that makes R14 requests and waits for them.
func (p *blockProgram) emitPass(s pass) {
	prepare := p.routine(func() { p.emitPrepare(s) })
	complete := p.routine(func() { p.emitComplete(s) })
	p.pump(p.disk, prepare, complete)
}

// emitPrepare is the subroutine that pushes request RSI for the next place. It
// changes RAX to RDX and RDI.
func (p *blockProgram) emitPrepare(s pass) {
	p.nextPlace()
	p.Shl(RBX, uint8(bits.TrailingZeros(uint(p.Size))))
	if s.verify {
		p.Store(Quad, p.element(RCX, RSI, 3, p.offsets), RBX)
	}
	kind := int32(blockIn)
	if s.access == Write {
		kind = blockOut
	}
	header := p.element(RCX, RSI, 4, p.headers)
	p.StoreImm(Long, header, kind)
	p.Mov(RAX, RBX)
	p.Shr(RAX, 9)
	header.Disp += 8
	p.Store(Quad, header, RAX)
	p.StoreImm(Byte, p.element(RCX, RSI, 0, p.statuses), 0xff)
	if s.verify && s.access == Write {
		p.dataAddress()
		p.patternFrom(p.Seed)
		p.pattern(func() { p.Store(Quad, Mem{Base: RDI}, RAX) })
	}
	p.send(p.disk)
}

// nextPlace leaves in RBX where on the disk the next request goes, in requests.
func (p *blockProgram) nextPlace() {
	if p.Random {
		p.random()
		p.Shr(RBX, 32)
		p.Load(Quad, RAX, p.places)
		p.Imul(RBX, RAX)
		p.Shr(RBX, 32)
		return
	}
	same := p.NewLabel()
	p.Mov(RBX, R8)
	p.Inc(R8)
	p.OpMem(Cmp, R8, p.places)
	p.Jcc(Below, same)
	p.MovImm(R8, 0)
	p.Bind(same)
}

// dataAddress sets RDI to the data of request RSI, and RCX to its size in quads.
func (p *blockProgram) dataAddress() {
	p.Mov(RDI, RSI)
	p.Shl(RDI, uint8(bits.TrailingZeros(uint(p.Size))))
	p.OpImm(Add, RDI, BufferStart)
	p.MovImm(RCX, uint64(p.Size/8))
}

// emitComplete is the subroutine that looks at a request that the device is done
// with: its number in RAX, which it leaves in RSI, and the bytes that the device
// wrote in RCX. It changes RAX to RDX, RDI and R11.
func (p *blockProgram) emitComplete(s pass) {
	failed, done := p.NewLabel(), p.NewLabel()
	p.receive(p.disk)
	p.Load(Byte, RBX, p.element(RDX, RSI, 0, p.statuses))
	p.Test(RBX, RBX)
	p.Jcc(NotEqual, failed)

	written := 1
	if s.access == Read {
		written += p.Size
	}
	p.OpImm(Cmp, RCX, int32(written))
	p.failUnless(Equal, StatusBadUsed, RCX)
	if s.verify && s.access == Read {
		p.compareData()
	}
	if s.counted {
		p.OpMemImm(Add, Quad, result(resultBytes), int32(p.Size))
	}
	p.Jmp(done)

	p.Bind(failed)
	p.OpMemImm(Add, Quad, result(resultErrors), 1)
	p.Store(Quad, result(resultDetail), RBX)
	p.Bind(done)
	if s.counted {
		p.OpMemImm(Add, Quad, result(ResultCount), 1)
		p.Mov(RAX, R11)
		p.record()
	}
}

// compareData notes whether the data of request RSI is the pattern.
func (p *blockProgram) compareData() {
	differs, same := p.NewLabel(), p.NewLabel()
	p.Load(Quad, RBX, p.element(RCX, RSI, 3, p.offsets))
	p.dataAddress()
	p.patternFrom(p.Seed)
	p.pattern(func() {
		p.OpMem(Cmp, RAX, Mem{Base: RDI})
		p.Jcc(NotEqual, differs)
	})
	p.Jmp(same)
	p.Bind(differs)
	p.OpMemImm(Add, Quad, result(resultMismatches), 1)
	p.Store(Quad, result(resultDetail), RBX)
	p.Bind(same)
}

// emitFlush is the subroutine that has the device write its cache back (§5.2.6),
// while nothing else is in flight.
func (p *blockProgram) emitFlush() {
	head, status := uint64(p.disk.spare()), at(p.statuses+uint64(p.Depth))
	wait, empty, good := p.NewLabel(), p.NewLabel(), p.NewLabel()
	p.StoreImm(Byte, status, 0xff)
	p.MovImm(RSI, head)
	p.push(p.disk.queue, RSI)
	p.publish(p.disk.queue)
	p.Jmp(wait)
	p.Bind(empty)
	p.idle()
	p.Bind(wait)
	p.pop(p.disk.queue, empty)
	p.OpImm(Cmp, RAX, int32(head))
	p.failUnless(Equal, StatusBadUsed, RAX)
	p.Load(Byte, RAX, status)
	p.Test(RAX, RAX)
	p.Jcc(Equal, good)
	p.OpMemImm(Add, Quad, result(resultErrors), 1)
	p.Store(Quad, result(resultDetail), RAX)
	p.Bind(good)
}
