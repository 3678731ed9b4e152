package bench

import (
	"github.com/godwit-vmm/godwit/bootloader"
	"github.com/godwit-vmm/godwit/guest/micro"
)

// The guests of the cases about snapshots write to this part of their memory, so
// that a snapshot of them has something in it.
const (
	usedStart = 16 << 20
	usedSize  = 256 << 20
	usedEnd   = usedStart + usedSize
)

// serialPort gets the byte with which a guest says that it is as far as its case
// wants.
const serialPort = 0x3f8

// waiter is a guest that uses its memory, says so, and then waits to be restored: as soon
// as its generation ID has changed, as it does in a godwit, it says so and asks its VMM
// to end. QEMU has no such ID, but what serves the port of its debug exit, which only the
// QEMU that restores the guest is given.
func waiter() ([]byte, error) {
	return assemble(func(a *micro.Asm) {
		a.MovImm(micro.RBX, usedStart)
		a.MovImm(micro.RCX, usedEnd)
		use := a.Here()
		a.Store(micro.Quad, micro.Mem{Base: micro.RBX}, micro.RBX)
		a.OpImm(micro.Add, micro.RBX, 4096)
		a.Op(micro.Cmp, micro.RBX, micro.RCX)
		a.Jcc(micro.Below, use)
		say(a)

		a.MovImm(micro.RBX, uint64(bootloader.GenerationIDAddr))
		a.Load(micro.Quad, micro.RSI, micro.Mem{Base: micro.RBX})
		wait, restored := a.Here(), a.NewLabel()
		a.Load(micro.Quad, micro.RDI, micro.Mem{Base: micro.RBX})
		a.Op(micro.Cmp, micro.RSI, micro.RDI)
		a.Jcc(micro.NotEqual, restored)
		stop(a, micro.DebugExit(0))
		a.Jmp(wait)
		a.Bind(restored)
		say(a)
		stop(a, micro.PowerOff())
		a.Jmp(a.Here())
	})
}

// Where a pacedWriter leaves what it has seen, as 64-bit words of the result page.
const (
	// pacedPages counts the pages that it has written at its pace.
	pacedPages = micro.ResultStart + 0x80
	// pacedStall is the longest time, in ticks of its time stamp counter,
	// between two looks at that counter: how long it stood still. Who wants to
	// know that of a while sets it to zero at its beginning.
	pacedStall = micro.ResultStart + 0x88
)

// pacedWriter is a guest that uses its memory once, says so, and then writes whole
// pages of it one after the other, one in so many ticks of its time stamp counter. It
// makes up for time that it has lost, but not for more than slack ticks.
func pacedWriter(ticks, slack uint64) ([]byte, error) {
	return assemble(func(a *micro.Asm) {
		const result, start, end, period, next, last = micro.R15, micro.R14, micro.R13, micro.R12, micro.R9, micro.R8
		const page, value, most, oldest = micro.RBX, micro.RBP, micro.R10, micro.R11
		a.MovImm(result, pacedPages)
		a.MovImm(start, usedStart)
		a.MovImm(end, usedEnd)
		a.MovImm(period, ticks)
		a.MovImm(most, slack)
		a.MovImm(value, 1)
		a.Mov(micro.RDI, start)
		a.MovImm(micro.RCX, usedSize/8)
		a.Mov(micro.RAX, value)
		a.RepStosq()
		say(a)

		now(a)
		a.Mov(last, micro.RDX)
		a.Mov(next, micro.RDX)
		pass := a.Here()
		a.Inc(value)
		a.Mov(page, start)
		wait, short, punctual := a.Here(), a.NewLabel(), a.NewLabel()
		now(a)
		a.Mov(micro.RAX, micro.RDX)
		a.Op(micro.Sub, micro.RAX, last)
		a.Mov(last, micro.RDX)
		a.OpMem(micro.Cmp, micro.RAX, micro.Mem{Base: result, Disp: pacedStall - pacedPages})
		a.Jcc(micro.BelowEqual, short)
		a.Store(micro.Quad, micro.Mem{Base: result, Disp: pacedStall - pacedPages}, micro.RAX)
		a.Bind(short)
		a.Op(micro.Cmp, micro.RDX, next)
		a.Jcc(micro.Below, wait)
		a.Op(micro.Add, next, period)
		a.Mov(oldest, micro.RDX)
		a.Op(micro.Sub, oldest, most)
		a.Op(micro.Cmp, next, oldest)
		a.Jcc(micro.AboveEqual, punctual)
		a.Mov(next, oldest)
		a.Bind(punctual)
		a.Mov(micro.RDI, page)
		a.MovImm(micro.RCX, 4096/8)
		a.Mov(micro.RAX, value)
		a.RepStosq()
		a.OpMemImm(micro.Add, micro.Quad, micro.Mem{Base: result}, 1)
		a.OpImm(micro.Add, page, 4096)
		a.Op(micro.Cmp, page, end)
		a.Jcc(micro.Below, wait)
		a.Jmp(pass)
	})
}

func assemble(write func(*micro.Asm)) ([]byte, error) {
	var a micro.Asm
	write(&a)
	code, err := a.Assemble()
	if err != nil {
		return nil, err
	}
	return micro.Program{Code: code}.ELF()
}

// say writes a byte to the serial port. It changes RAX and RDX.
func say(a *micro.Asm) {
	stop(a, micro.Stop{{Port: serialPort, Width: micro.Byte, Value: '.'}})
}

// stop does the port writes. It changes RAX and RDX.
func stop(a *micro.Asm, s micro.Stop) {
	for _, w := range s {
		a.MovImm(micro.RDX, uint64(w.Port))
		a.MovImm(micro.RAX, uint64(w.Value))
		a.Out(w.Width)
	}
}

// now reads the time stamp counter into RDX. It changes RAX.
func now(a *micro.Asm) {
	a.Rdtsc()
	a.Shl(micro.RDX, 32)
	a.Op(micro.Or, micro.RDX, micro.RAX)
}
