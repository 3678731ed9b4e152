package micro

import "fmt"

// build assembles a program that body writes, ends it with stop and wraps it.
func build(stop Stop, body func(a *Asm)) ([]byte, error) {
	var a Asm
	body(&a)
	stop.emit(&a)
	code, err := a.Assemble()
	if err != nil {
		return nil, err
	}
	return Program{Code: code}.ELF()
}

// Exit is the shortest program: it stops at once.
func Exit(stop Stop) ([]byte, error) {
	return build(stop, func(*Asm) {})
}

// Spin never stops and never exits to the VMM.
func Spin() ([]byte, error) { return build(nil, func(*Asm) {}) }

// Fault causes an invalid opcode exception, which ends the guest with a triple
// fault.
func Fault() ([]byte, error) {
	return build(nil, func(a *Asm) { a.Ud2() })
}

// Hello writes text to the serial port at 0x3f8, waiting for the transmitter
// before each byte.
func Hello(text string, stop Stop) ([]byte, error) {
	const (
		data            = 0x3f8
		lineStatus      = 0x3fd
		transmitterFree = 1 << 5
	)
	return build(stop, func(a *Asm) {
		for _, c := range []byte(text) {
			a.MovImm(RDX, lineStatus)
			wait := a.Here()
			a.In(Byte)
			a.TestImm(RAX, transmitterFree)
			a.Jcc(Equal, wait)
			a.MovImm(RDX, data)
			a.MovImm(RAX, uint64(c))
			a.Out(Byte)
		}
	})
}

// Access is a direction of I/O.
type Access int

// The directions.
const (
	Read Access = iota
	Write
)

// PortLoop accesses one port n times. The result words have the count and the
// time stamps around the loop.
func PortLoop(dir Access, port uint16, w Width, n uint64, stop Stop) ([]byte, error) {
	return build(stop, func(a *Asm) {
		a.MovImm(RDX, uint64(port))
		a.MovImm(RAX, 0x5a)
		a.timedLoop(n, func() {
			if dir == Write {
				a.Out(w)
			} else {
				a.In(w)
			}
		})
	})
}

// MMIOLoop accesses one address n times. The result words have the count and
// the time stamps around the loop.
func MMIOLoop(dir Access, addr uint64, w Width, n uint64, stop Stop) ([]byte, error) {
	if err := mapped(addr, uint64(w)); err != nil {
		return nil, err
	}
	return build(stop, func(a *Asm) {
		a.MovImm(RBX, addr)
		a.timedLoop(n, func() {
			if dir == Write {
				a.Store(w, Mem{Base: RBX}, RAX)
			} else {
				a.Load(w, RAX, Mem{Base: RBX})
			}
		})
	})
}

// timedLoop runs body n times and fills the result words. Body may not change
// R8 to R15; RAX and RDX are as body left them in the next round.
func (a *Asm) timedLoop(n uint64, body func()) {
	a.MovImm(R15, ResultStart)
	a.MovImm(R14, n)
	end := a.NewLabel()
	a.stamp(ResultFirstTSC)
	a.Test(R14, R14)
	a.Jcc(Equal, end)
	loop := a.Here()
	body()
	a.Dec(R14)
	a.Jcc(NotEqual, loop)
	a.Bind(end)
	a.stamp(ResultLastTSC)
	a.MovImm(RAX, n)
	a.Store(Quad, Mem{R15, ResultCount}, RAX)
}

// stamp stores the time stamp counter at offset from R15. It changes R12 and
// R13 only.
func (a *Asm) stamp(offset int32) {
	a.Mov(R12, RAX)
	a.Mov(R13, RDX)
	a.Rdtsc()
	a.Store(Long, Mem{R15, offset}, RAX)
	a.Store(Long, Mem{R15, offset + 4}, RDX)
	a.Mov(RAX, R12)
	a.Mov(RDX, R13)
}

// Forever as the number of passes makes Touch go on until the guest is ended.
const Forever = 0

// Touch writes one word at each multiple of stride from start up to, not
// including, end, the given number of times. The word is the number of the
// pass, from 1, and the result count has the passes that are finished.
func Touch(start, end, stride, passes uint64, stop Stop) ([]byte, error) {
	return touch(start, end, stride, passes, stop, func(*Asm) {})
}

// Check is Touch by a guest that looks before it writes: a word that is not the number
// of the pass before, 0 in the first, counts as a mismatch, and its address becomes
// the detail of the result.
func Check(start, end, stride, passes uint64, stop Stop) ([]byte, error) {
	return touch(start, end, stride, passes, stop, func(a *Asm) {
		good := a.NewLabel()
		a.Load(Quad, RDX, Mem{Base: RBX})
		a.Inc(RDX)
		a.Op(Cmp, RDX, RAX)
		a.Jcc(Equal, good)
		a.Store(Quad, Mem{R15, resultDetail}, RBX)
		a.OpMemImm(Add, Quad, Mem{R15, resultMismatches}, 1)
		a.Bind(good)
	})
}

// touch is Touch with look before each write, which has the address in RBX and the
// number of the pass in RAX, and may change RDX.
func touch(start, end, stride, passes uint64, stop Stop, look func(*Asm)) ([]byte, error) {
	if stride < uint64(Quad) || stride > 1<<30 || stride%uint64(Quad) != 0 {
		return nil, fmt.Errorf("micro: stride of %d bytes: want a multiple of 8 up to 1 GiB", stride)
	}
	if start%uint64(Quad) != 0 || end <= start || end > DefaultMapGiB<<30 {
		return nil, fmt.Errorf("micro: touch %#x to %#x: want an aligned start below an end within %d GiB", start, end, DefaultMapGiB)
	}
	return build(stop, func(a *Asm) {
		a.MovImm(R15, ResultStart)
		a.MovImm(RCX, end)
		a.MovImm(RAX, 0)
		a.stamp(ResultFirstTSC)
		pass := a.Here()
		a.Inc(RAX)
		a.MovImm(RBX, start)
		page := a.Here()
		look(a)
		a.Store(Quad, Mem{Base: RBX}, RAX)
		a.OpImm(Add, RBX, int32(stride))
		a.Op(Cmp, RBX, RCX)
		a.Jcc(Below, page)
		a.Store(Quad, Mem{R15, ResultCount}, RAX)
		a.stamp(ResultLastTSC)
		if passes == Forever {
			a.Jmp(pass)
			return
		}
		a.MovImm(RDX, passes)
		a.Op(Cmp, RAX, RDX)
		a.Jcc(Below, pass)
	})
}

// mapped tells whether a ready program can reach the n bytes at addr.
func mapped(addr, n uint64) error {
	if addr >= DefaultMapGiB<<30 || addr+n > DefaultMapGiB<<30 {
		return fmt.Errorf("micro: address %#x is not mapped: programs reach %d GiB", addr, DefaultMapGiB)
	}
	return nil
}
