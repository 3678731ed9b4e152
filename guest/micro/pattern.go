package micro

import "encoding/binary"

// patternStep makes neighbouring quads of the pattern differ in all bytes.
const patternStep uint64 = 0x9e37_79b9_7f4a_7c15

func patternAt(seed, offset uint64) uint64 { return (seed + offset) * patternStep }

// Pattern fills p with what programs write and expect at an offset (a multiple
// of 8) of a disk or stream.
func Pattern(seed, offset uint64, p []byte) {
	var quad [8]byte
	for len(p) > 0 {
		binary.LittleEndian.PutUint64(quad[:], patternAt(seed, offset))
		p = p[copy(p, quad[:]):]
		offset += 8
	}
}

// pattern runs body for each of RCX quads at RDI, with what the pattern has
// there in RAX, of which the caller has set the first. It changes RDX as well.
func (a *Asm) pattern(body func()) {
	a.MovImm(RDX, patternAt(0, 8))
	loop := a.Here()
	body()
	a.Op(Add, RAX, RDX)
	a.OpImm(Add, RDI, 8)
	a.Dec(RCX)
	a.Jcc(NotEqual, loop)
}

// patternFrom sets RAX to the pattern at the offset in RBX. It changes RDX.
func (a *Asm) patternFrom(seed uint64) {
	a.MovImm(RAX, seed)
	a.Op(Add, RAX, RBX)
	a.MovImm(RDX, patternStep)
	a.Imul(RAX, RDX)
}
