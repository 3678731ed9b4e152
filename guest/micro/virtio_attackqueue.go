package micro

// This file has what VirtioAttack does in a round to queues; the conventions are
// those of virtio_attackacts.go.
//
// A balloon discards pages by numbers that it reads from a buffer, which may be a
// queue. Therefore what is in a queue, lengths above all, is not the number of a
// page of the program: it is below 256, or 0x403 or more.

// Requests of the attack begin with one of these headers.
const (
	attackHeaderCount = 64
	attackHeaderSize  = 64
	attackPorts       = 2 // of the host, from 0
)

// attackHeaders makes headers that devices take seriously, for the start of the
// arena.
func (m *area) attackHeaders() uint64 {
	start := m.alloc(attackHeaderCount*attackHeaderSize, 64)
	for i := range attackHeaderCount {
		header := start + uint64(i*attackHeaderSize)
		switch i % 4 {
		case 0, 1: // a disk: the kinds of requests, near its start
			kinds := []uint32{blockIn, blockOut, blockIn, blockOut, blockFlush, blockID, blockDiscard, blockZeroes}
			m.put32(header, kinds[i/4%8])
			m.put64(header+8, uint64(i))
		case 2: // a socket: two connections, from what may be the guest's address
			const cid, port = 3, 1000
			ops := []uint16{opRequest, opData, opRequest, opCreditRequest, opData, opShutdown, opCreditUpdate, opReset}
			m.put64(header+vsockSourceCID, cid)
			m.put64(header+vsockDestinationCID, hostCID)
			m.put32(header+vsockSourcePort, port)
			m.put32(header+vsockDestinationPort, uint32(i/32%attackPorts))
			m.put32(header+vsockLength, uint32(i%3)*64)
			m.put16(header+vsockType, vsockStream)
			m.put16(header+vsockOp, ops[i/4%len(ops)])
			m.put32(header+vsockBufAlloc, vsockWindow)
		case 3: // a network card: headers with and without offloads
			if i%8 == 3 {
				m.bytes(header)[netHeaderFlags], m.bytes(header)[netHeaderGSOType] = needsChecksum, gsoTCPv4
				m.put16(header+netHeaderLength, tcpPayload)
				m.put16(header+netHeaderGSOSize, uint16(100*i))
				m.put16(header+netHeaderStart, frameTransport)
				m.put16(header+netHeaderOffset, uint16(i))
			}
			m.put64(header+netHeaderSize, uint64(i)*patternStep)
		}
	}
	return start
}

// fillArena puts the headers at the start of the arena and random numbers behind
// them: a small one in the low half, a larger one in the high half.
func (p *virtioAttack) fillArena() {
	p.MovImm(RDI, attackArena)
	p.Lea(RSI, at(p.requests))
	p.MovImm(RCX, attackHeaderCount*attackHeaderSize/8)
	p.RepMovsq()
	next := p.Here()
	p.random()
	p.MovImm(RAX, 0xff_0000_001f)
	p.Op(And, RBX, RAX)
	p.Store(Quad, Mem{Base: RDI}, RBX)
	p.OpImm(Add, RDI, 8)
	p.OpImm(Cmp, RDI, attackArena+attackArenaSize)
	p.Jcc(Below, next)
}

// hostile leaves an address in RBX: half of the time one in the arena, else that
// of the queue itself, around the end of RAM, in the PCI hole, or beyond all. It
// changes RAX and RCX.
func (p *virtioAttack) hostile() {
	p.random()
	p.Mov(RCX, RBX)
	p.Mov(RAX, RBX)
	p.MovImm(RBX, attackArena)
	p.choose(RCX, 50, 8, func(i int) {
		switch i {
		case 0:
			p.Mov(RBX, attackQueue)
		case 1:
			p.OpImm(And, RAX, 0x1fff)
			p.MovImm(RBX, p.Memory-0x1000)
			p.Op(Add, RBX, RAX)
		case 2:
			p.OpImm(And, RAX, 0x1fff_ffff)
			p.MovImm(RBX, 0xc000_0000)
			p.Op(Add, RBX, RAX)
		case 3:
			p.MovImm(RBX, 1<<62)
			p.Op(Or, RBX, RAX)
		default:
			p.OpImm(And, RAX, attackArenaSize-1)
			p.Op(Add, RBX, RAX)
		}
	})
}

// emitRequest makes a chain as a driver does: a header, data in either direction,
// a status byte. Now and then one of its descriptors is hostile.
func (p *virtioAttack) emitRequest() {
	p.random()
	p.Mov(RDX, RBX)
	p.Shr(RDX, 8)
	p.OpImm(And, RDX, (attackHeaderCount-1)*attackHeaderSize)
	p.OpImm(Add, RDX, attackArena)
	p.Store(Quad, Mem{attackQueue, 0}, RDX)
	p.Mov(RCX, RDX)
	p.choose(RCX, 6, 8, func(i int) { // what attackHeaders has there
		p.MovImm(RAX, []uint64{16, 16, vsockHeader, netHeaderSize}[i%4]|descNext<<32|1<<48)
	})
	p.Store(Quad, Mem{attackQueue, 8}, RAX)

	p.MovImm(RDI, 1<<20-1)
	p.OpImm(And, RDI, -sectorSize)
	p.Mov(RDX, RBX)
	p.Shr(RDX, 24)
	p.Op(And, RDX, RDI)
	p.OpImm(Add, RDX, attackArena)
	p.Store(Quad, Mem{attackQueue, 16}, RDX)
	p.Mov(RCX, RBX)
	p.choose(RCX, 45, 8, func(i int) {
		size := []uint64{3 * sectorSize, 8 * sectorSize, 5 * sectorSize, 16, 64, 1500, 65536, 3 * sectorSize}[i]
		p.MovImm(RAX, size|uint64(descNext|descWrite*(i%2))<<32|2<<48)
	})
	p.Store(Quad, Mem{attackQueue, 24}, RAX)

	p.MovImm(RDX, attackArena+attackArenaSize-64)
	p.Store(Quad, Mem{attackQueue, 32}, RDX)
	p.MovImm(RAX, 1|descWrite<<32)
	p.Store(Quad, Mem{attackQueue, 40}, RAX)
	p.oneIn(8, func() {
		p.hostile()
		p.Mov(RDI, RBX)
		p.random()
		p.OpImm(And, RBX, ^(attackQueueSize - 2)) // the first or the second
		p.descriptor()
	})

	// The head goes where the device looks next.
	p.Load(Word, RCX, Mem{attackQueue, attackAvail + ringIdx})
	p.OpImm(And, RCX, attackQueueSize-1)
	p.Shl(RCX, 1)
	p.Op(Add, RCX, attackQueue)
	p.StoreImm(Word, Mem{RCX, attackAvail + availRing}, 0)
	p.Load(Word, RAX, Mem{attackQueue, attackAvail + ringIdx})
	p.Inc(RAX)
	p.Store(Word, Mem{attackQueue, attackAvail + ringIdx}, RAX)
	p.ring()
}

// emitScribble writes descriptors and avail entries into the queue, moves its
// index, mostly by a little, and rings its doorbell. Now and then it changes data
// in the arena.
func (p *virtioAttack) emitScribble() {
	p.MovImm(R14, 6)
	next := p.Here()
	p.hostile()
	p.Mov(RDI, RBX)
	p.random()
	p.descriptor()
	p.random()
	p.Mov(RCX, RBX)
	p.Shr(RCX, 8)
	p.OpImm(And, RCX, attackQueueSize-1)
	p.Shl(RCX, 1)
	p.Op(Add, RCX, attackQueue)
	p.smallOrAny(RDX, attackQueueSize-1)
	p.Store(Word, Mem{RCX, attackAvail + availRing}, RDX)
	p.Dec(R14)
	p.Jcc(NotEqual, next)

	p.oneIn(4, func() {
		p.random()
		p.Mov(RDX, RBX)
		p.OpImm(And, RDX, attackArenaSize-8)
		p.OpImm(Add, RDX, attackArena)
		p.random()
		p.Store(Quad, Mem{Base: RDX}, RBX)
	})
	p.moveIndex()
	p.ring()
}

// descriptor writes one to a place in the queue: address RDI, and by the bits of
// RBX its place, a length that is small or any, flags, and a next descriptor. It
// changes RAX to RDX and RDI.
func (p *virtioAttack) descriptor() {
	p.Mov(RCX, RBX)
	p.OpImm(And, RCX, attackQueueSize-1)
	p.Shl(RCX, 4)
	p.Op(Add, RCX, attackQueue)
	p.Store(Quad, Mem{Base: RCX}, RDI)
	p.Shr(RBX, 8)
	p.Mov(RDI, RBX)
	p.Store(Long, Mem{RCX, 8}, RDI)
	p.oneIn(2, func() {
		p.OpMemImm(And, Long, Mem{RCX, 8}, 0x7ff)
		p.OpMemImm(Or, Long, Mem{RCX, 8}, 0x800)
	})
	p.oneIn(2, func() { p.OpMemImm(And, Long, Mem{RCX, 8}, 0xff) })
	p.Shr(RDI, 32)
	p.OpImm(And, RDI, descNext|descWrite)
	p.oneIn(8, func() {
		p.OpImm(Or, RDI, descIndirect)
		p.oneIn(2, func() { p.Store(Quad, Mem{Base: RCX}, attackQueue) }) // a table in itself
	})
	p.Store(Word, Mem{RCX, 12}, RDI)
	p.smallOrAny(RDX, attackQueueSize-1)
	p.Store(Word, Mem{RCX, 14}, RDX)
}

// moveIndex makes up to four more chains available, or any number, and writes
// flags and event index of the avail ring.
func (p *virtioAttack) moveIndex() {
	p.smallOrAny(RDI, 3)
	p.Inc(RDI)
	p.random()
	p.Mov(RDX, RBX)
	p.OpImm(And, RDX, 0x7f)
	p.Store(Word, Mem{attackQueue, attackAvail + availRing + 2*attackQueueSize}, RDX)
	p.Shr(RBX, 27)
	p.OpImm(And, RBX, noInterrupt)
	p.Store(Word, Mem{attackQueue, attackAvail}, RBX)
	p.Load(Word, RAX, Mem{attackQueue, attackAvail + ringIdx})
	p.Op(Add, RAX, RDI)
	p.Store(Word, Mem{attackQueue, attackAvail + ringIdx}, RAX)
}

// ring rings the doorbell of the queue.
func (p *virtioAttack) ring() {
	none := p.NewLabel()
	p.region(regionNotify, none)
	p.Mov(RAX, attackQueue)
	p.OpMem(Sub, RAX, Mem{attackEntry, entryQueues})
	p.Shr(RAX, 12) // the number of the queue
	p.Mov(RCX, RAX)
	p.Load(Quad, RBX, Mem{attackEntry, entryNotify})
	p.Imul(RCX, RBX)
	p.Op(Add, RDX, RCX)
	p.Store(Word, Mem{Base: RDX}, RAX)
	p.Bind(none)
}
