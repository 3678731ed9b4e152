package micro

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Reg is a general register. The same value names the register at every
// width: RAX is also EAX, AX and AL.
type Reg uint8

// The general registers, numbered as the processor does (SDM vol. 2 §2.1.5).
const (
	RAX Reg = iota
	RCX
	RDX
	RBX
	RSP
	RBP
	RSI
	RDI
	R8
	R9
	R10
	R11
	R12
	R13
	R14
	R15
)

// Width is the size of an access in bytes.
type Width uint8

// The widths of memory accesses. Port I/O goes up to Long.
const (
	Byte Width = 1
	Word Width = 2
	Long Width = 4
	Quad Width = 8
)

// Mem is the memory operand [Base+Disp].
type Mem struct {
	Base Reg
	Disp int32
}

// Label is a place in the program, made by Asm.NewLabel.
type Label int

// Asm assembles 64-bit code. The first mistake is kept and returned by
// Assemble, so that programs are written without error checks. The zero value
// is an empty program.
type Asm struct {
	code   []byte
	labels []int // offset of each label, or unbound
	fixups []fixup
	err    error
}

// fixup is a 32-bit relative displacement to fill in once label is bound.
type fixup struct {
	at    int
	label Label
}

const unbound = -1

// NewLabel makes a label to be bound later.
func (a *Asm) NewLabel() Label {
	a.labels = append(a.labels, unbound)
	return Label(len(a.labels) - 1)
}

// Bind gives the label the current place. A label is bound once.
func (a *Asm) Bind(l Label) {
	switch {
	case !a.known(l):
	case a.labels[l] != unbound:
		a.fail("label %d is bound twice", l)
	default:
		a.labels[l] = len(a.code)
	}
}

// Here makes a label bound to the current place.
func (a *Asm) Here() Label {
	l := a.NewLabel()
	a.Bind(l)
	return l
}

// Data puts bytes into the program as they are.
func (a *Asm) Data(p ...byte) { a.code = append(a.code, p...) }

// Assemble resolves all labels and returns the code.
func (a *Asm) Assemble() ([]byte, error) {
	if a.err != nil {
		return nil, a.err
	}
	for _, f := range a.fixups {
		target := a.labels[f.label]
		if target == unbound {
			return nil, fmt.Errorf("micro: label %d is used at offset %#x and never bound", f.label, f.at)
		}
		binary.LittleEndian.PutUint32(a.code[f.at:], uint32(target-(f.at+4)))
	}
	return a.code, nil
}

func (a *Asm) fail(format string, args ...any) {
	if a.err == nil {
		a.err = fmt.Errorf("micro: offset %#x: "+format, append([]any{len(a.code)}, args...)...)
	}
}

func (a *Asm) known(l Label) bool {
	if l < 0 || int(l) >= len(a.labels) {
		a.fail("label %d was not made by this assembler", l)
		return false
	}
	return true
}

func (a *Asm) imm32(v uint32) { a.code = binary.LittleEndian.AppendUint32(a.code, v) }

// rel32 emits a displacement to l that counts from the end of the instruction.
func (a *Asm) rel32(l Label) {
	if !a.known(l) {
		return
	}
	a.fixups = append(a.fixups, fixup{at: len(a.code), label: l})
	a.imm32(0)
}

// The bits of a REX prefix (SDM vol. 2 §2.2.1.2).
const (
	rex  = 0x40
	rexW = 0x08
	rexR = 0x04
	rexB = 0x01
)

// prefix emits the operand size and REX prefixes of an access of the given
// width with reg in ModRM.reg and rm in ModRM.rm or as the base of a memory
// operand. byteReg says that reg, byteRM that rm, is an 8-bit register: numbers
// 4 to 7 need a REX prefix then, or they would mean AH to BH.
func (a *Asm) prefix(w Width, reg, rm Reg, byteReg, byteRM bool) {
	if reg > R15 || rm > R15 {
		a.fail("no register %d, %d", reg, rm)
	}
	var p byte
	switch w {
	case Byte, Long:
	case Word:
		a.Data(0x66)
	case Quad:
		p = rex | rexW
	default:
		a.fail("no operand of %d bytes", w)
	}
	if reg >= R8 {
		p |= rex | rexR
	}
	if rm >= R8 {
		p |= rex | rexB
	}
	if byteReg && reg >= RSP || byteRM && rm >= RSP {
		p |= rex
	}
	if p != 0 {
		a.Data(p)
	}
}

// modReg emits the ModRM byte of two registers.
func (a *Asm) modReg(reg, rm Reg) { a.Data(0xc0 | byte(reg&7)<<3 | byte(rm&7)) }

// modMem emits the ModRM byte, and what follows it, of reg and memory operand
// m (SDM vol. 2 §2.1.5). RSP and R12 as a base take a SIB byte; RBP and R13
// without a displacement would mean RIP-relative.
func (a *Asm) modMem(reg Reg, m Mem) {
	base := byte(m.Base & 7)
	mod := byte(2)
	switch {
	case m.Disp == 0 && base != byte(RBP):
		mod = 0
	case m.Disp >= math.MinInt8 && m.Disp <= math.MaxInt8:
		mod = 1
	}
	a.Data(mod<<6 | byte(reg&7)<<3 | base)
	if base == byte(RSP) {
		a.Data(0x24)
	}
	switch mod {
	case 1:
		a.Data(byte(m.Disp))
	case 2:
		a.imm32(uint32(m.Disp))
	}
}
