package micro

import "fmt"

// VirtioAttack is a hostile driver of all virtio devices on PCI bus 0 at once. In
// each round it does one thing to one of them: brings it up with queues that may
// be anywhere, fills queues with descriptors that loop, overlap, or lie outside
// of memory, makes avail indexes jump, rings doorbells, resets devices in
// mid-flight, and writes to registers, MSI-X tables and configuration space.
//
// Its own code it spares: what devices may write to or discard lies outside of it,
// and interrupt messages have the fixed delivery mode.
type VirtioAttack struct {
	// Seed of the random numbers; the same seed does the same to the same
	// devices, whatever they answer. 0 is taken as 1.
	Seed uint64
	// Count of rounds, or Forever.
	Count uint64
	// Memory is how much RAM the guest has, in bytes from address 0: at least
	// 32 MiB.
	Memory uint64
	// Stop ends the guest after Count rounds.
	Stop Stop
}

// Where the queues and buffers of the attack are.
const (
	attackArena     = BufferStart
	attackArenaSize = 1 << 20
	attackQueues    = attackArena + attackArenaSize
	// attackMemory is more than that.
	attackMemory = 32 << 20

	// Each function has four queues of up to 16 descriptors with a page each:
	// descriptors, avail ring, used ring.
	attackQueueCount  = 4
	attackQueueSize   = 16
	attackQueueStride = 4096
	attackAvail       = 0x400
	attackUsed        = 0x800
)

// The attack keeps an entry for each function in a table.
const (
	entryFunction = 0x00                // as in RSI
	entryRegions  = 0x08                // a quad for each kind, 0 for those absent
	entryMSIX     = entryRegions        // kind 0 is none of virtio's
	entryNotify   = entryRegions + 0x28 // multiplier
	entryQueues   = 0x38                // address of the first queue
	entryBARs     = 0x40                // six dwords
	entryMSIXReg  = 0x58                // register of the capability
	entrySize     = 0x80
	entryShift    = 7

	capabilityMSIX = 0x11
)

// The attack asks for interrupts, which stay pending: a message to the first
// processor with fixed delivery, from a few vectors (SDM vol. 3 §11.11).
const (
	attackMessage  = 0xfee0_0000
	attackVector   = 0x40
	attackVectors  = 4
	msixEntryShift = 4
	msixEnable     = 1 << 31 // in the first dword of the capability
)

// Registers of the attack, beside those of Attack.
const (
	attackEntry = R12 // of the function at hand
	attackQueue = R13 // memory of the queue at hand
)

// virtioAttack is a VirtioAttack in the making.
type virtioAttack struct {
	*driver
	VirtioAttack
	table uint64
	found Mem // functions in the table
	// msix is the register of the MSI-X capability of the function that is
	// looked at first.
	msix     Mem
	requests uint64 // headers to begin with
}

// ELF is the program. Its result count is the number of finished rounds.
func (t VirtioAttack) ELF() ([]byte, error) {
	if t.Memory < attackMemory || t.Memory > DefaultMapGiB<<30 {
		return nil, fmt.Errorf("micro: attack in %d bytes of memory: want %d MiB to %d GiB", t.Memory, attackMemory>>20, DefaultMapGiB)
	}
	p := &virtioAttack{driver: newDriver(Driver{Stop: t.Stop}), VirtioAttack: t}
	p.table = p.alloc(slots*entrySize, entrySize)
	p.found, p.msix = p.variable(), p.variable()
	p.requests = p.attackHeaders()
	p.findFunctions()
	p.MovImm(attackState, max(t.Seed, 1))
	p.fillArena()
	p.emitRounds()
	return p.finish()
}

// findFunctions fills the table.
func (p *virtioAttack) findFunctions() {
	p.eachVirtio(func() {
		p.assignBARs()
		for _, m := range append(p.regions[:], p.notifyMultiplier, p.msix) {
			p.StoreImm(Quad, m, 0)
		}
		p.findRegions()
		p.findMSIX()
		p.enableFunction()

		p.Load(Quad, RDI, p.found)
		p.OpMemImm(Add, Quad, p.found, 1)
		p.Mov(RAX, RDI)
		entry := p.element(attackEntry, RDI, entryShift, p.table)
		p.Lea(attackEntry, entry)
		p.Store(Quad, Mem{attackEntry, entryFunction}, RSI)
		p.MovImm(RDX, attackQueueCount*attackQueueStride)
		p.Imul(RAX, RDX)
		p.OpImm(Add, RAX, attackQueues)
		p.Store(Quad, Mem{attackEntry, entryQueues}, RAX)
		for kind, m := range append(p.regions[:], p.notifyMultiplier) {
			p.Load(Quad, RAX, m)
			p.Store(Quad, Mem{attackEntry, entryRegions + 8*int32(kind)}, RAX)
		}
		p.Load(Quad, RAX, p.msix)
		p.Store(Quad, Mem{attackEntry, entryMSIXReg}, RAX)
		for i := range int32(6) {
			p.readConfig(uint64(pciBAR0 + 4*i))
			p.Store(Long, Mem{attackEntry, entryBARs + 4*i}, RAX)
		}
	})
	p.OpMemImm(Cmp, Quad, p.found, 0)
	p.failUnless(NotEqual, StatusNoDevice)
}

// findMSIX leaves the address of the MSI-X table of function RSI where that of
// a region of kind 0 would be (PCI 3.0 §6.8.2.4).
func (p *virtioAttack) findMSIX() {
	p.eachCapability(func() {
		other := p.NewLabel()
		p.OpImm(Cmp, RAX, capabilityMSIX)
		p.Jcc(NotEqual, other)
		p.Lea(RCX, Mem{RDI, 4}) // offset, and the BAR in its low bits
		p.Call(p.configRead)
		p.Mov(R10, RAX)
		p.OpImm(And, RAX, 7)
		p.OpImm(And, R10, -8)
		p.barAddress(R11, other)
		p.Op(Add, R11, R10)
		p.Store(Quad, p.regions[0], R11)
		p.Store(Quad, p.msix, RDI)
		p.Bind(other)
	})
}

// emitRounds is the main program.
func (p *virtioAttack) emitRounds() {
	request := p.routine(p.emitRequest)
	actions := []Label{ // what breaks a device is rarer than what is served
		p.routine(p.emitRegisters),
		p.routine(p.emitPage),
		p.routine(p.emitBringUp),
		request,
		request,
		request,
		p.routine(p.emitScribble),
		p.routine(p.emitConfigSpace),
	}
	p.MovImm(attackDone, 0)
	p.MovImm(attackCount, total(p.Count))
	round := p.Here()
	p.random() // a function: its number is a share of those found
	p.Shr(RBX, 32)
	p.Load(Quad, RAX, p.found)
	p.Imul(RBX, RAX)
	p.Shr(RBX, 32)
	p.Lea(attackEntry, p.element(attackEntry, RBX, entryShift, p.table))
	p.Load(Quad, RSI, Mem{attackEntry, entryFunction})
	p.random() // one of its queues
	p.Mov(attackQueue, RBX)
	p.Shr(attackQueue, 32)
	p.OpImm(And, attackQueue, (attackQueueCount-1)*attackQueueStride)
	p.OpMem(Add, attackQueue, Mem{attackEntry, entryQueues})
	p.random()
	p.Mov(RCX, RBX)
	p.choose(RCX, 29, len(actions), func(i int) { p.Call(actions[i]) })
	p.attackRound()
	p.Op(Cmp, attackDone, attackCount)
	p.Jcc(Below, round)

	// Leave the devices as a driver that comes next may find them.
	p.MovImm(R14, 0)
	next := p.Here()
	p.Lea(attackEntry, p.element(attackEntry, R14, entryShift, p.table))
	p.Load(Quad, RSI, Mem{attackEntry, entryFunction})
	p.restore()
	p.Inc(R14)
	p.OpMem(Cmp, R14, p.found)
	p.Jcc(Below, next)
}
