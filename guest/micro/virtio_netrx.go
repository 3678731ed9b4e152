package micro

import "encoding/binary"

// prepareReceive makes the queues of Receive and Echo. The same buffers go
// through both.
func (p *netProgram) prepareReceive() {
	p.stride = (p.BufferSize + 63) &^ 63
	p.rx, p.tx = p.newQueue(receiveQueue, p.Depth), p.newQueue(transmitQueue, p.Depth)
	p.merged = p.variable()
	for i := range p.Depth {
		addr := BufferStart + uint64(i*p.stride)
		p.putDescriptor(p.rx.desc, i, buffer{addr, p.BufferSize, true}, 0, 0)
		p.putDescriptor(p.tx.desc, i, buffer{addr, 0, false}, 0, 0)
	}
}

// giveBuffers hands all buffers to the device.
func (p *netProgram) giveBuffers() {
	p.MovImm(RSI, 0)
	next := p.Here()
	p.push(p.rx, RSI)
	p.Inc(RSI)
	p.OpImm(Cmp, RSI, int32(p.Depth))
	p.Jcc(Below, next)
	p.publish(p.rx)
}

// popBuffer takes the next buffer from a queue: its number into RSI, the bytes in
// it into RCX, and its address into RDI.
func (p *netProgram) popBuffer(q *queue, none Label) {
	p.pop(q, none)
	p.Mov(RSI, RAX)
	p.OpImm(Cmp, RSI, int32(p.Depth))
	p.failUnless(Below, StatusBadUsed, RSI)
	p.bufferAddress(RDI, RSI)
}

// emitReceive is the subroutine that counts R14 packets; R10 has them. R8 tells
// whether the packet at hand counts.
func (p *netProgram) emitReceive() {
	loop, empty, end, more, other := p.NewLabel(), p.NewLabel(), p.NewLabel(), p.NewLabel(), p.NewLabel()
	p.MovImm(R10, 0)
	p.Bind(loop)
	p.popBuffer(p.rx, empty)
	p.Mov(R9, RCX)
	p.push(p.rx, RSI)
	if p.Mergeable {
		// The buffers of a packet come one after the other, and the first
		// says how many there are (§5.1.6.4).
		start := p.NewLabel()
		p.Load(Quad, RAX, p.merged)
		p.Test(RAX, RAX)
		p.Jcc(Equal, start)
		p.OpMemImm(Sub, Quad, p.merged, 1)
		p.Test(R8, R8)
		p.Jcc(NotEqual, more)
		p.Jmp(other)
		p.Bind(start)
		p.Load(Word, RAX, Mem{RDI, netHeaderBuffers})
		p.Dec(RAX)
		p.failUnless(GreaterEq, StatusBadUsed)
		p.Store(Quad, p.merged, RAX)
	}
	p.MovImm(R8, 0)
	p.jumpUnlessLocal(other)
	p.Inc(R8)
	p.Inc(R10)
	p.OpMemImm(Add, Quad, result(ResultCount), 1)
	p.OpImm(Sub, R9, netHeaderSize)
	p.Bind(more)
	p.addTo(resultBytes, R9)
	p.stampTo(result(ResultLastTSC))
	p.Bind(other)
	p.Op(Cmp, R10, R14)
	p.Jcc(Below, loop)
	p.Jmp(end)

	p.Bind(empty)
	p.publish(p.rx)
	p.idle()
	p.Jmp(loop)
	p.Bind(end)
}

// jumpUnlessLocal jumps if the packet in the buffer at RDI is not for this
// guest's MAC address. It changes RAX and RDX.
func (p *netProgram) jumpUnlessLocal(other Label) {
	low, high := p.localMAC()
	p.Load(Long, RAX, frameField(frameDestination))
	p.MovImm(RDX, uint64(low))
	p.Op(Cmp, RAX, RDX)
	p.Jcc(NotEqual, other)
	p.Load(Word, RAX, frameField(frameDestination+4))
	p.OpImm(Cmp, RAX, int32(high))
	p.Jcc(NotEqual, other)
}

// frameField is a place in the packet in the buffer at RDI.
func frameField(offset int32) Mem { return Mem{RDI, netHeaderSize + offset} }

// localMAC is this guest's MAC address as two numbers to be stored.
func (p *netProgram) localMAC() (low uint32, high uint16) {
	return binary.LittleEndian.Uint32(p.Local.MAC[:]), binary.LittleEndian.Uint16(p.Local.MAC[4:])
}

// storeMAC writes this guest's MAC address.
func (p *netProgram) storeMAC(m Mem) {
	low, high := p.localMAC()
	p.StoreImm(Long, m, int32(low))
	m.Disp += 4
	p.StoreImm(Word, m, int32(high))
}

// move copies bytes in the packet. It changes RAX.
func (p *netProgram) move(to, from int32, widths ...Width) {
	for _, w := range widths {
		p.Load(w, RAX, frameField(from))
		p.Store(w, frameField(to), RAX)
		to, from = to+int32(w), from+int32(w)
	}
}

// emitEcho is the subroutine that sends R14 packets back; R10 has those that
// were sent.
func (p *netProgram) emitEcho() {
	loop, sent, idle, end, drop := p.NewLabel(), p.NewLabel(), p.NewLabel(), p.NewLabel(), p.NewLabel()
	turn := p.routine(p.emitTurn)
	p.MovImm(R10, 0)
	p.Bind(loop)
	p.popBuffer(p.rx, sent)
	p.Call(turn)
	p.Test(RAX, RAX)
	p.Jcc(Equal, drop)
	p.Store(Long, p.element(RDX, RSI, 4, p.tx.desc+8), RCX)
	p.push(p.tx, RSI)
	p.Jmp(loop)
	p.Bind(drop)
	p.push(p.rx, RSI)
	p.Jmp(loop)

	p.Bind(sent)
	p.popBuffer(p.tx, idle)
	p.push(p.rx, RSI)
	p.Load(Word, RAX, frameField(frameType))
	p.OpImm(Cmp, RAX, little(typeARP))
	p.Jcc(Equal, loop)
	p.Inc(R10)
	p.OpMemImm(Add, Quad, result(ResultCount), 1)
	p.Load(Long, RCX, p.element(RDX, RSI, 4, p.tx.desc+8))
	p.OpImm(Sub, RCX, netHeaderSize)
	p.addTo(resultBytes, RCX)
	p.stampTo(result(ResultLastTSC))
	p.Jmp(loop)

	p.Bind(idle)
	p.publish(p.tx)
	p.publish(p.rx)
	p.Op(Cmp, R10, R14)
	p.Jcc(AboveEqual, end)
	p.idle()
	p.Jmp(loop)
	p.Bind(end)
}

// emitTurn is the subroutine that makes an answer of the packet in the buffer at
// RDI; RAX is 0 if there is none to send. It keeps RCX, RSI and RDI.
func (p *netProgram) emitTurn() {
	arp, other, send := p.NewLabel(), p.NewLabel(), p.NewLabel()
	p.Load(Word, RBX, frameField(frameType))
	p.OpImm(Cmp, RBX, little(typeARP))
	p.Jcc(Equal, arp)
	p.jumpUnlessLocal(other)
	p.move(frameDestination, frameSource, Long, Word)
	p.storeMAC(frameField(frameSource))
	p.OpImm(Cmp, RBX, little(typeIP))
	p.Jcc(NotEqual, send)
	p.Load(Byte, RAX, frameField(ipVersion))
	p.OpImm(Cmp, RAX, ipv4NoOptions)
	p.Jcc(NotEqual, send)
	p.swap(Long, ipSource, ipDestination)
	ports := p.NewLabel()
	p.Load(Byte, RAX, frameField(ipProtocol))
	p.OpImm(Cmp, RAX, protocolUDP)
	p.Jcc(Equal, ports)
	p.OpImm(Cmp, RAX, protocolTCP)
	p.Jcc(NotEqual, send)
	p.Bind(ports)
	p.swap(Word, frameTransport, frameTransport+2)

	p.Bind(send)
	// Of the flags only NEEDS_CSUM is for the device too, and num_buffers is
	// zero (§5.1.6.2).
	p.Load(Byte, RAX, Mem{RDI, netHeaderFlags})
	p.OpImm(And, RAX, needsChecksum)
	p.Store(Byte, Mem{RDI, netHeaderFlags}, RAX)
	p.StoreImm(Word, Mem{RDI, netHeaderBuffers}, 0)
	p.MovImm(RAX, 1)
	p.Ret()

	p.Bind(arp)
	p.Load(Word, RAX, frameField(arpOperation))
	p.OpImm(Cmp, RAX, little(1)) // a request
	p.Jcc(NotEqual, other)
	ip := binary.LittleEndian.Uint32(p.Local.IP[:])
	p.Load(Long, RAX, frameField(arpTarget+6))
	p.MovImm(RDX, uint64(ip))
	p.Op(Cmp, RAX, RDX)
	p.Jcc(NotEqual, other)
	p.move(frameDestination, arpSender, Long, Word)
	p.storeMAC(frameField(frameSource))
	p.StoreImm(Word, frameField(arpOperation), little(2)) // a reply
	p.move(arpTarget, arpSender, Quad, Word)
	p.storeMAC(frameField(arpSender))
	p.StoreImm(Long, frameField(arpSender+6), int32(ip))
	p.Jmp(send)

	p.Bind(other)
	p.MovImm(RAX, 0)
}

// swap exchanges two fields of the packet. It changes RAX and RDX.
func (p *netProgram) swap(w Width, x, y int32) {
	p.Load(w, RAX, frameField(x))
	p.Load(w, RDX, frameField(y))
	p.Store(w, frameField(x), RDX)
	p.Store(w, frameField(y), RAX)
}
