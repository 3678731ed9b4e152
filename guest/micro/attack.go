package micro

import "fmt"

// Span is a range of ports or addresses, both ends included.
type Span struct {
	First, Last uint64
}

// Attack is a hostile program: it reads and writes random values of random
// width at random ports and addresses.
type Attack struct {
	// Seed of the random numbers; the same seed makes the same accesses,
	// whatever the VMM answers. 0 is taken as 1.
	Seed uint64
	// Count of accesses, or Forever.
	Count uint64
	// Ports attacks all 64 Ki ports, except those in SkipPorts.
	Ports     bool
	SkipPorts []Span
	// MMIO are the windows to attack. The size of each is a power of two;
	// accesses may reach up to 7 bytes past the end.
	MMIO []Span
	// Stop ends the guest after Count accesses.
	Stop Stop
}

// ELF is the program. Its result count is the number of finished accesses.
func (t Attack) ELF() ([]byte, error) {
	if !t.Ports && len(t.MMIO) == 0 {
		return nil, fmt.Errorf("micro: attack on neither ports nor MMIO")
	}
	for _, s := range t.MMIO {
		size := s.Last - s.First + 1
		if s.Last < s.First || size&(size-1) != 0 {
			return nil, fmt.Errorf("micro: MMIO window %#x to %#x: want a size that is a power of two", s.First, s.Last)
		}
		if err := mapped(s.Last, 8); err != nil {
			return nil, err
		}
	}
	return build(t.Stop, t.emit)
}

// Registers of the attack. RAX, RBX, RCX, RDX and RSI are scratch.
const (
	attackState = R8  // of the random numbers
	attackDone  = R9  // finished accesses
	attackCount = R10 // wanted accesses
)

func (t Attack) emit(a *Asm) {
	a.MovImm(R15, ResultStart)
	a.MovImm(attackState, max(t.Seed, 1))
	a.MovImm(attackDone, 0)
	a.MovImm(attackCount, t.Count)
	round := a.Here()
	if t.Ports {
		a.attackPort(t.SkipPorts)
		a.attackRound()
	}
	for _, s := range t.MMIO {
		a.attackMMIO(s)
		a.attackRound()
	}
	if t.Count != Forever {
		a.Op(Cmp, attackDone, attackCount)
		a.Jcc(Below, round)
		return
	}
	a.Jmp(round)
}

func (a *Asm) attackRound() {
	a.Inc(attackDone)
	a.Store(Quad, Mem{R15, ResultCount}, attackDone)
}

// random leaves the next xorshift64 number in RBX and the state.
func (a *Asm) random() {
	shift := func(op func(Reg, uint8), n uint8) {
		a.Mov(RBX, attackState)
		op(RBX, n)
		a.Op(Xor, attackState, RBX)
	}
	shift(a.Shl, 13)
	shift(a.Shr, 7)
	shift(a.Shl, 17)
	a.Mov(RBX, attackState)
}

// attackPort accesses one random port. The number's low 16 bits are the port,
// bits 16 to 18 the kind of access; the next number is the value.
func (a *Asm) attackPort(skip []Span) {
	again := a.Here()
	a.random()
	a.Mov(RDX, RBX)
	a.OpImm(And, RDX, 0xffff)
	for _, s := range skip {
		next := a.NewLabel()
		// A port up to three below reaches into the range with a
		// four-byte access.
		if s.First > 3 {
			a.OpImm(Cmp, RDX, int32(s.First-3))
			a.Jcc(Below, next)
		}
		a.OpImm(Cmp, RDX, int32(s.Last))
		a.Jcc(BelowEqual, again)
		a.Bind(next)
	}
	a.Mov(RCX, RBX)
	a.random()
	a.Mov(RAX, RBX)
	a.choose(RCX, 16, 6, func(kind int) {
		w := []Width{Byte, Word, Long}[kind%3]
		if kind < 3 {
			a.Out(w)
		} else {
			a.In(w)
		}
	})
}

// attackMMIO accesses one random address of s.
func (a *Asm) attackMMIO(s Span) {
	a.random()
	a.Mov(RCX, RBX)
	a.Mov(RDX, RBX)
	a.MovImm(RSI, s.Last-s.First)
	a.Op(And, RDX, RSI)
	a.MovImm(RSI, s.First)
	a.Op(Add, RDX, RSI)
	a.random()
	a.poke()
}

// poke reads or writes RBX at RDX, as three bits of RCX say. It changes RCX.
func (a *Asm) poke() {
	a.choose(RCX, 40, 8, func(kind int) {
		w := []Width{Byte, Word, Long, Quad}[kind%4]
		if kind < 4 {
			a.Store(w, Mem{Base: RDX}, RBX)
		} else {
			a.Load(w, RAX, Mem{Base: RDX})
		}
	})
}

// choose runs one of n pieces of code, picked by the three bits of r from bit
// on: number i, and for n below 8 the last one gets what is left over. It
// changes r.
func (a *Asm) choose(r Reg, bit uint8, n int, emit func(i int)) {
	a.Shr(r, bit)
	a.OpImm(And, r, 7)
	end := a.NewLabel()
	for i := range n {
		next := a.NewLabel()
		if i < n-1 {
			a.OpImm(Cmp, r, int32(i))
			a.Jcc(NotEqual, next)
		}
		emit(i)
		a.Jmp(end)
		a.Bind(next)
	}
	a.Bind(end)
}
