package micro

import (
	"encoding/binary"
	"math"
)

// MovImm sets dst to v with the shortest encoding.
func (a *Asm) MovImm(dst Reg, v uint64) {
	switch {
	case v <= math.MaxUint32:
		a.prefix(Long, 0, dst, false, false)
		a.Data(0xb8 | byte(dst&7))
		a.imm32(uint32(v))
	case int64(v) >= math.MinInt32 && int64(v) < 0:
		a.prefix(Quad, 0, dst, false, false)
		a.Data(0xc7)
		a.modReg(0, dst)
		a.imm32(uint32(v))
	default:
		a.prefix(Quad, 0, dst, false, false)
		a.Data(0xb8 | byte(dst&7))
		a.code = binary.LittleEndian.AppendUint64(a.code, v)
	}
}

// Mov copies src to dst, all 64 bits.
func (a *Asm) Mov(dst, src Reg) {
	a.prefix(Quad, src, dst, false, false)
	a.Data(0x89)
	a.modReg(src, dst)
}

// LeaLabel sets dst to the address of l.
func (a *Asm) LeaLabel(dst Reg, l Label) {
	a.prefix(Quad, dst, 0, false, false)
	a.Data(0x8d, 0x05|byte(dst&7)<<3) // mod 0, rm 5: RIP-relative
	a.rel32(l)
}

// Lea sets dst to the address of m.
func (a *Asm) Lea(dst Reg, m Mem) {
	a.prefix(Quad, dst, m.Base, false, false)
	a.Data(0x8d)
	a.modMem(dst, m)
}

// Load reads w bytes at m into dst and clears the rest of dst.
func (a *Asm) Load(w Width, dst Reg, m Mem) {
	switch w {
	case Byte, Word: // movzx to 32 bits
		a.prefix(Long, dst, m.Base, false, false)
		a.Data(0x0f, 0xb6|byte(w>>1))
	default:
		a.prefix(w, dst, m.Base, false, false)
		a.Data(0x8b)
	}
	a.modMem(dst, m)
}

// Store writes the low w bytes of src to m.
func (a *Asm) Store(w Width, m Mem, src Reg) {
	a.prefix(w, src, m.Base, w == Byte, false)
	a.Data(opWide(0x88, w))
	a.modMem(src, m)
}

// StoreImm writes v to m. A Quad is v sign-extended.
func (a *Asm) StoreImm(w Width, m Mem, v int32) {
	a.prefix(w, 0, m.Base, false, false)
	a.Data(opWide(0xc6, w))
	a.modMem(0, m)
	switch w {
	case Byte:
		a.Data(byte(v))
	case Word:
		a.code = binary.LittleEndian.AppendUint16(a.code, uint16(v))
	default:
		a.imm32(uint32(v))
	}
}

// opWide is op for bytes, and the opcode after it for the other widths.
func opWide(op byte, w Width) byte {
	if w == Byte {
		return op
	}
	return op + 1
}

// In reads w bytes (at most Long) from the port in DX into AL, AX or EAX.
func (a *Asm) In(w Width) { a.portIO(w, 0xec) }

// Out writes AL, AX or EAX (w at most Long) to the port in DX.
func (a *Asm) Out(w Width) { a.portIO(w, 0xee) }

// InImm is In from the given port.
func (a *Asm) InImm(w Width, port uint8) {
	a.portIO(w, 0xe4)
	a.Data(port)
}

// OutImm is Out to the given port.
func (a *Asm) OutImm(w Width, port uint8) {
	a.portIO(w, 0xe6)
	a.Data(port)
}

func (a *Asm) portIO(w Width, op byte) {
	if w == Quad {
		a.fail("port I/O of 8 bytes")
	}
	a.prefix(w, 0, 0, false, false)
	a.Data(opWide(op, w))
}

// ALU is an arithmetic operation of two operands that sets the flags.
type ALU uint8

// The operations, numbered as the processor does.
const (
	Add ALU = 0
	Or  ALU = 1
	And ALU = 4
	Sub ALU = 5
	Xor ALU = 6
	Cmp ALU = 7
)

// Op does dst = dst op src on 64 bits.
func (a *Asm) Op(op ALU, dst, src Reg) {
	a.prefix(Quad, src, dst, false, false)
	a.Data(byte(op)<<3 | 1)
	a.modReg(src, dst)
}

// OpMem does dst = dst op m on 64 bits.
func (a *Asm) OpMem(op ALU, dst Reg, m Mem) {
	a.prefix(Quad, dst, m.Base, false, false)
	a.Data(byte(op)<<3 | 3)
	a.modMem(dst, m)
}

// OpImm does dst = dst op v on 64 bits, v sign-extended.
func (a *Asm) OpImm(op ALU, dst Reg, v int32) {
	a.prefix(Quad, 0, dst, false, false)
	short := v >= math.MinInt8 && v <= math.MaxInt8
	if short {
		a.Data(0x83)
	} else {
		a.Data(0x81)
	}
	a.modReg(Reg(op), dst)
	a.immShort(short, v)
}

// OpMemImm does m = m op v on w bytes, v sign-extended; w is Long or Quad.
func (a *Asm) OpMemImm(op ALU, w Width, m Mem, v int32) {
	if w != Long && w != Quad {
		a.fail("memory arithmetic on %d bytes", w)
	}
	a.prefix(w, 0, m.Base, false, false)
	short := v >= math.MinInt8 && v <= math.MaxInt8
	if short {
		a.Data(0x83)
	} else {
		a.Data(0x81)
	}
	a.modMem(Reg(op), m)
	a.immShort(short, v)
}

func (a *Asm) immShort(short bool, v int32) {
	if short {
		a.Data(byte(v))
	} else {
		a.imm32(uint32(v))
	}
}

// Test sets the flags of x AND y, 64 bits.
func (a *Asm) Test(x, y Reg) {
	a.prefix(Quad, y, x, false, false)
	a.Data(0x85)
	a.modReg(y, x)
}

// TestImm sets the flags of r AND v, v sign-extended to 64 bits.
func (a *Asm) TestImm(r Reg, v int32) {
	a.prefix(Quad, 0, r, false, false)
	a.Data(0xf7)
	a.modReg(0, r)
	a.imm32(uint32(v))
}

// Shl shifts r left by n bits, shifting zeros in.
func (a *Asm) Shl(r Reg, n uint8) { a.shift(4, r, n) }

// Shr shifts r right by n bits, shifting zeros in.
func (a *Asm) Shr(r Reg, n uint8) { a.shift(5, r, n) }

func (a *Asm) shift(op Reg, r Reg, n uint8) {
	if n > 63 {
		a.fail("shift by %d bits", n)
	}
	a.prefix(Quad, 0, r, false, false)
	a.Data(0xc1)
	a.modReg(op, r)
	a.Data(n)
}

// ShrCL shifts r right by the number of bits in CL, modulo 64, shifting zeros
// in.
func (a *Asm) ShrCL(r Reg) {
	a.prefix(Quad, 0, r, false, false)
	a.Data(0xd3)
	a.modReg(5, r)
}

// Bsr sets dst to the number of the highest bit set in src, which is not zero.
func (a *Asm) Bsr(dst, src Reg) {
	a.prefix(Quad, dst, src, false, false)
	a.Data(0x0f, 0xbd)
	a.modReg(dst, src)
}

// Inc adds one to r and leaves the carry flag alone.
func (a *Asm) Inc(r Reg) { a.group5(0, r) }

// Dec subtracts one from r and leaves the carry flag alone.
func (a *Asm) Dec(r Reg) { a.group5(1, r) }

func (a *Asm) group5(op Reg, r Reg) {
	a.prefix(Quad, 0, r, false, false)
	a.Data(0xff)
	a.modReg(op, r)
}

// Imul does dst = dst * src, the low 64 bits.
func (a *Asm) Imul(dst, src Reg) {
	a.prefix(Quad, dst, src, false, false)
	a.Data(0x0f, 0xaf)
	a.modReg(dst, src)
}

// Xadd exchanges src with [m] and adds the old src to [m], locked.
func (a *Asm) Xadd(w Width, m Mem, src Reg) {
	a.Data(0xf0)
	a.prefix(w, src, m.Base, w == Byte, false)
	a.Data(0x0f, opWide(0xc0, w))
	a.modMem(src, m)
}

// Cmpxchg writes src to [m] if [m] equals RAX and sets ZF, else loads [m] into
// RAX, locked.
func (a *Asm) Cmpxchg(w Width, m Mem, src Reg) {
	a.Data(0xf0)
	a.prefix(w, src, m.Base, w == Byte, false)
	a.Data(0x0f, opWide(0xb0, w))
	a.modMem(src, m)
}

// Push puts r on the stack, 64 bits.
func (a *Asm) Push(r Reg) {
	a.prefix(Long, 0, r, false, false)
	a.Data(0x50 | byte(r&7))
}

// Pop takes r from the stack.
func (a *Asm) Pop(r Reg) {
	a.prefix(Long, 0, r, false, false)
	a.Data(0x58 | byte(r&7))
}

// PushImm pushes v sign-extended to 64 bits.
func (a *Asm) PushImm(v int32) {
	a.Data(0x68)
	a.imm32(uint32(v))
}

// Cond is the condition of a jump.
type Cond uint8

// The conditions, numbered as the processor does. Below and Above compare
// without sign.
const (
	Below      Cond = 0x2
	AboveEqual Cond = 0x3
	Equal      Cond = 0x4
	NotEqual   Cond = 0x5
	BelowEqual Cond = 0x6
	Above      Cond = 0x7
	Less       Cond = 0xc
	GreaterEq  Cond = 0xd
	LessEq     Cond = 0xe
	Greater    Cond = 0xf
)

// Jmp jumps to l.
func (a *Asm) Jmp(l Label) {
	a.Data(0xe9)
	a.rel32(l)
}

// Jcc jumps to l if c holds.
func (a *Asm) Jcc(c Cond, l Label) {
	a.Data(0x0f, 0x80|byte(c))
	a.rel32(l)
}

// Call calls l.
func (a *Asm) Call(l Label) {
	a.Data(0xe8)
	a.rel32(l)
}

// Ret returns from a call.
func (a *Asm) Ret() { a.Data(0xc3) }

// Rdtsc reads the time stamp counter into EDX:EAX.
func (a *Asm) Rdtsc() { a.Data(0x0f, 0x31) }

// Cpuid reads leaf EAX, subleaf ECX into EAX, EBX, ECX and EDX.
func (a *Asm) Cpuid() { a.Data(0x0f, 0xa2) }

// Pause tells the processor that this is a spin loop.
func (a *Asm) Pause() { a.Data(0xf3, 0x90) }

// Mfence waits for all earlier loads and stores.
func (a *Asm) Mfence() { a.Data(0x0f, 0xae, 0xf0) }

// RepStosq writes RAX to RCX quads from RDI up.
func (a *Asm) RepStosq() { a.Data(0xf3, 0x48, 0xab) }

// RepMovsq copies RCX quads from RSI up to RDI up.
func (a *Asm) RepMovsq() { a.Data(0xf3, 0x48, 0xa5) }

// Ud2 faults with #UD.
func (a *Asm) Ud2() { a.Data(0x0f, 0x0b) }

// Int3 faults with #BP.
func (a *Asm) Int3() { a.Data(0xcc) }

// Hlt faults with #GP in ring 3.
func (a *Asm) Hlt() { a.Data(0xf4) }
