package micro

// emitService is the subroutine that takes what has come from the host and from
// the transmit queue, and answers.
func (p *vsockProgram) emitService() {
	loop, empty, other, done := p.NewLabel(), p.NewLabel(), p.NewLabel(), p.NewLabel()
	packet := p.routine(p.emitPacket)
	p.Bind(loop)
	p.pop(p.rx, empty)
	p.Mov(RSI, RAX)
	p.OpImm(Cmp, RSI, int32(p.Depth))
	p.failUnless(Below, StatusBadUsed, RSI)
	p.OpImm(Sub, RCX, vsockHeader)
	p.failUnless(AboveEqual, StatusBadUsed, RCX)
	p.MovImm(RDI, uint64(p.rxStride))
	p.Imul(RDI, RSI)
	p.MovImm(RAX, p.rxStart)
	p.Op(Add, RDI, RAX)
	for _, port := range []struct {
		field int32
		port  uint32
	}{{vsockSourcePort, p.Port}, {vsockDestinationPort, p.LocalPort}} {
		p.Load(Long, RAX, Mem{RDI, port.field})
		p.MovImm(RDX, uint64(port.port))
		p.Op(Cmp, RAX, RDX)
		p.Jcc(NotEqual, other)
	}
	p.Call(packet)
	p.Bind(other)
	p.push(p.rx, RSI)
	p.Jmp(loop)

	p.Bind(empty)
	p.publish(p.rx)
	p.Call(p.reap)
	// The host hears about half a window that was taken, or when it asks.
	update := p.NewLabel()
	p.OpMemImm(Cmp, Quad, p.creditAsked, 0)
	p.Jcc(NotEqual, update)
	p.Load(Quad, RAX, p.received)
	p.OpMem(Sub, RAX, p.told)
	p.OpImm(Cmp, RAX, vsockWindow/2)
	p.Jcc(Below, done)
	p.Bind(update)
	p.StoreImm(Quad, p.creditAsked, 0)
	p.sendControl(opCreditUpdate, 0)
	p.Bind(done)
}

// emitPacket is the subroutine that looks at the packet at RDI, with RCX bytes
// behind its header. It keeps RSI.
func (p *vsockProgram) emitPacket() {
	data, response, end, asked := p.NewLabel(), p.NewLabel(), p.NewLabel(), p.NewLabel()
	p.Load(Long, RAX, Mem{RDI, vsockBufAlloc})
	p.Store(Quad, p.peerBuffer, RAX)
	p.Load(Long, RAX, Mem{RDI, vsockFwdCount})
	p.Store(Quad, p.peerForward, RAX)
	p.Load(Word, RAX, Mem{RDI, vsockOp})
	for _, c := range []struct {
		op int32
		to Label
	}{{opData, data}, {opResponse, response}, {opReset, end}, {opShutdown, end}, {opCreditRequest, asked}} {
		p.OpImm(Cmp, RAX, c.op)
		p.Jcc(Equal, c.to)
	}
	p.Ret()
	p.Bind(response)
	p.StoreImm(Quad, p.connected, 1)
	p.Ret()
	p.Bind(asked)
	p.StoreImm(Quad, p.creditAsked, 1)
	p.Ret()
	p.Bind(end)
	p.Store(Quad, p.closed, RAX)
	p.Ret()

	p.Bind(data)
	p.Load(Long, RAX, Mem{RDI, vsockLength})
	p.Op(Cmp, RAX, RCX)
	p.failUnless(BelowEqual, StatusBadUsed, RAX)
	p.Load(Quad, RBX, p.received)
	p.Mov(RCX, RBX)
	p.Op(Add, RCX, RAX)
	p.Store(Quad, p.received, RCX)
	if p.Verify {
		p.OpImm(Add, RDI, vsockHeader)
		p.Mov(R12, RAX)
		p.compareBytes()
	}
}

// compareBytes notes whether the R12 bytes at RDI are the pattern at offset RBX.
// It changes RAX to RDX as well.
func (p *vsockProgram) compareBytes() {
	same, end := p.NewLabel(), p.NewLabel()
	loop := p.Here()
	p.Test(R12, R12)
	p.Jcc(Equal, end)
	p.Mov(RCX, RBX)
	p.OpImm(And, RCX, 7)
	p.Shl(RCX, 3)
	p.Push(RBX)
	p.OpImm(And, RBX, -8)
	p.patternFrom(p.Seed)
	p.Pop(RBX)
	p.ShrCL(RAX)
	p.OpImm(And, RAX, 0xff)
	p.Load(Byte, RDX, Mem{Base: RDI})
	p.Op(Cmp, RAX, RDX)
	p.Jcc(Equal, same)
	p.OpMemImm(Add, Quad, result(resultMismatches), 1)
	p.Store(Quad, result(resultDetail), RBX)
	p.Jmp(end)
	p.Bind(same)
	p.Inc(RBX)
	p.Inc(RDI)
	p.Dec(R12)
	p.Jmp(loop)
	p.Bind(end)
}

// emitReap is the subroutine that takes back packets that the device has sent.
func (p *vsockProgram) emitReap() {
	empty := p.NewLabel()
	loop := p.Here()
	p.pop(p.tx, empty)
	p.OpImm(Cmp, RAX, int32(p.slots))
	p.failUnless(Below, StatusBadUsed, RAX)
	p.Load(Quad, RCX, p.freeTop)
	p.OpImm(Cmp, RCX, int32(p.slots))
	p.failUnless(Below, StatusBadUsed, RAX)
	p.Store(Quad, p.element(RDX, RCX, 3, p.free), RAX)
	p.OpMemImm(Add, Quad, p.freeTop, 1)
	p.Jmp(loop)
	p.Bind(empty)
}

// sendData pushes the next Size bytes of the stream. There is room for them at
// the host.
func (p *vsockProgram) sendData() {
	p.MovImm(R11, opData)
	p.MovImm(R12, uint64(p.Size))
	p.MovImm(R13, 0)
	p.Call(p.sendPacket)
}

// emitSendPacket is the subroutine that pushes a packet with operation R11, R12
// bytes of data, and flags R13. If none is free, it waits for one.
func (p *vsockProgram) emitSendPacket() {
	wait, free := p.NewLabel(), p.NewLabel()
	p.Bind(wait)
	p.OpMemImm(Cmp, Quad, p.freeTop, 0)
	p.Jcc(NotEqual, free)
	p.publish(p.tx)
	p.Call(p.reap)
	p.idle()
	p.Jmp(wait)
	p.Bind(free)
	p.OpMemImm(Sub, Quad, p.freeTop, 1)
	p.Load(Quad, RAX, p.freeTop)
	p.Load(Quad, RSI, p.element(RDX, RAX, 3, p.free))

	header := p.element(RDI, RSI, 6, p.headers)
	field := func(offset int32) Mem { return Mem{header.Base, header.Disp + offset} }
	p.Store(Long, field(vsockLength), R12)
	p.Store(Word, field(vsockOp), R11)
	p.Store(Long, field(vsockFlags), R13)
	p.Load(Quad, RAX, p.received)
	p.Store(Long, field(vsockFwdCount), RAX)
	p.Store(Quad, p.told, RAX)

	// With data, the header's descriptor leads to that of the buffer.
	const lengthOffset, flagsOffset = 8, 12
	descriptor := p.element(RDX, RSI, 4, p.tx.desc)
	flags, length := descriptor, descriptor
	flags.Disp += flagsOffset
	length.Disp += int32(p.slots*descSize) + lengthOffset
	bare, ready := p.NewLabel(), p.NewLabel()
	p.Test(R12, R12)
	p.Jcc(Equal, bare)
	p.StoreImm(Word, flags, descNext)
	p.Store(Long, length, R12)
	if p.Verify {
		p.fillPacket()
	}
	p.Load(Quad, RAX, p.sent)
	p.Op(Add, RAX, R12)
	p.Store(Quad, p.sent, RAX)
	p.Jmp(ready)
	p.Bind(bare)
	p.StoreImm(Word, flags, 0)
	p.Bind(ready)
	p.push(p.tx, RSI)
}

// fillPacket writes the pattern to the buffer of packet RSI.
func (p *vsockProgram) fillPacket() {
	p.MovImm(RDI, uint64(p.stride))
	p.Imul(RDI, RSI)
	p.OpImm(Add, RDI, BufferStart)
	p.Load(Quad, RBX, p.sent)
	p.patternFrom(p.Seed)
	p.MovImm(RCX, uint64(p.Size/8))
	p.pattern(func() { p.Store(Quad, Mem{Base: RDI}, RAX) })
}
