package micro

// Stop is how a program ends the guest: port writes, one after the other. A
// VMM ends the guest at one of them; the program spins in case it takes a
// while.
type Stop []PortWrite

// PortWrite is one OUT instruction.
type PortWrite struct {
	Port  uint16
	Width Width
	Value uint32
}

// PowerOff writes sleep type 5 to the ACPI register PM1a_CNT where godwit has
// it (ACPI 6.5 §4.8.3.2.1).
func PowerOff() Stop { return Stop{{Port: 0x604, Width: Word, Value: sleepEnable | 5<<10}} }

// QEMUPowerOff is PowerOff for QEMU's q35, where firmware put the register at
// the same port and sleep type 0 means off.
func QEMUPowerOff() Stop { return Stop{{Port: 0x604, Width: Word, Value: sleepEnable}} }

const sleepEnable = 1 << 13

// Reset writes to the reset control register of PC chipsets.
func Reset() Stop { return Stop{{Port: 0xcf9, Width: Byte, Value: 6}} }

// DebugExit ends QEMU started with `-device
// isa-debug-exit,iobase=0xf4,iosize=4` with exit status 2*value+1.
func DebugExit(value uint32) Stop { return Stop{{Port: 0xf4, Width: Long, Value: value}} }

// emit writes the instructions of s and an endless loop behind them. It uses
// RAX and RDX.
func (s Stop) emit(a *Asm) {
	for _, w := range s {
		a.MovImm(RDX, uint64(w.Port))
		a.MovImm(RAX, uint64(w.Value))
		a.Out(w.Width)
	}
	spin := a.Here()
	a.Pause()
	a.Jmp(spin)
}
