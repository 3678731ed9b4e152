package devices

import "fmt"

// SerialState is a saved serial port. Output that the guest has sent belongs to
// the host's side and is not part of it: Flush before saving. Input that the
// guest has not read yet is.
type SerialState struct {
	Version uint32

	IER, FCR, LCR, MCR, Scratch byte
	Divisor                     [2]byte
	Overrun                     bool
	Deltas                      byte // low half of MSR
	FIFO                        []byte
	Input                       []byte
}

const serialVersion = 1

// Save returns the state.
func (s *Serial) Save() SerialState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return SerialState{
		Version: serialVersion,
		IER:     s.ier,
		FCR:     s.fcr,
		LCR:     s.lcr,
		MCR:     s.mcr,
		Scratch: s.scratch,
		Divisor: s.divisor,
		Overrun: s.overrun,
		Deltas:  s.deltas,
		FIFO:    s.fifo.bytes(),
		Input:   s.input.bytes(),
	}
}

// Restore takes over a saved state. Restore the interrupt controller first.
func (s *Serial) Restore(st SerialState) error {
	if err := st.validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ier, s.fcr, s.lcr, s.mcr, s.scratch = st.IER, st.FCR, st.LCR, st.MCR, st.Scratch
	s.divisor, s.overrun, s.deltas = st.Divisor, st.Overrun, st.Deltas
	s.fifo.clear()
	s.fifo.write(st.FIFO)
	s.input.clear()
	s.input.write(st.Input)
	s.receive()

	// The transmitter is empty, whatever it was when the state was saved,
	// so a guest that waits for it must hear of it. The falling edge first
	// makes the interrupt a new one even if the line was high before; one
	// interrupt too many does no harm, and one too few stops the port.
	s.thri = true
	s.irq.Set(false)
	s.update()
	return nil
}

func (st *SerialState) validate() error {
	if err := CheckVersion("serial", st.Version, serialVersion); err != nil {
		return err
	}
	if st.IER&^ierKept != 0 || st.FCR&^fcrKept != 0 || st.MCR&^mcrKept != 0 || st.Deltas&^msrDeltas != 0 {
		return fmt.Errorf("serial state: IER %#x, FCR %#x, MCR %#x or MSR %#x has bits that the register does not keep",
			st.IER, st.FCR, st.MCR, st.Deltas)
	}
	depth := 1
	if st.FCR&fcrEnable != 0 {
		depth = fifoSize
	}
	if len(st.FIFO) > depth {
		return fmt.Errorf("serial state: %d bytes in a receive FIFO of %d", len(st.FIFO), depth)
	}
	if len(st.Input) > inputLimit {
		return fmt.Errorf("serial state: %d bytes of waiting input, the limit is %d", len(st.Input), inputLimit)
	}
	return nil
}
