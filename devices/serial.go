package devices

import (
	"context"
	"io"
	"sync"
)

// Register offsets of the 16550A (PC16550D data sheet, table II). Where two
// share one, reads and writes or the DLAB bit of LCR tell them apart.
const (
	uartData    = 0 // RBR on read, THR on write; DLL with DLAB
	uartIER     = 1 // interrupt enable; DLM with DLAB
	uartIIR     = 2 // interrupt identification on read
	uartFCR     = 2 // FIFO control on write
	uartLCR     = 3 // line control
	uartMCR     = 4 // modem control
	uartLSR     = 5 // line status
	uartMSR     = 6 // modem status
	uartScratch = 7
)

const (
	ierData   = 1 << 0 // received data, and its timeout
	ierTHRE   = 1 << 1 // transmitter holding register empty
	ierLine   = 1 << 2 // receiver line status
	ierModem  = 1 << 3 // modem status
	ierKept   = 0x0f
	iirModem  = 0x00
	iirNone   = 0x01
	iirTHRE   = 0x02
	iirData   = 0x04
	iirLine   = 0x06
	iirExpire = 0x0c // character timeout
	iirFIFO   = 0xc0

	fcrEnable   = 1 << 0
	fcrClearRx  = 1 << 1
	fcrTrigger  = 3 << 6
	fcrKept     = fcrEnable | fcrTrigger
	lcrDLAB     = 1 << 7
	mcrDTR      = 1 << 0
	mcrRTS      = 1 << 1
	mcrOut1     = 1 << 2
	mcrOut2     = 1 << 3
	mcrLoop     = 1 << 4
	mcrKept     = 0x1f
	lsrReady    = 1 << 0 // data ready
	lsrOverrun  = 1 << 1
	lsrTHRE     = 1 << 5
	lsrTEMT     = 1 << 6 // transmitter wholly empty
	msrDeltaCTS = 1 << 0
	msrDeltaDSR = 1 << 1
	msrTrailRI  = 1 << 2
	msrDeltaDCD = 1 << 3
	msrDeltas   = 0x0f
	msrCTS      = 1 << 4
	msrDSR      = 1 << 5
	msrRI       = 1 << 6
	msrDCD      = 1 << 7
)

const (
	// fifoSize is the depth of the 16550A's FIFOs, which Linux takes from
	// the chip's type: it sends as many bytes on each THRE interrupt.
	fifoSize = 16
	// inputLimit bounds the input that waits behind the receive FIFO.
	inputLimit = 4096
)

// SerialConfig says how a serial port is wired.
type SerialConfig struct {
	// Out gets what the guest transmits, from one goroutine, in batches;
	// nil discards it. A writer that blocks holds the guest back.
	Out io.Writer
	// IRQ is the interrupt line, edge triggered on a PC.
	IRQ Line
}

// Serial is a 16550A UART. Its line is infinitely fast: a byte that the
// transmitter accepts counts as sent, and one that arrives counts as the last
// before a pause.
type Serial struct {
	irq Line
	tx  *transmitter
	// space gets a token when a Send that waits may go on.
	space chan struct{}
	done  chan struct{} // closed by Close

	mu       sync.Mutex
	ier      byte
	fcr      byte
	lcr      byte
	mcr      byte
	scratch  byte
	divisor  [2]byte
	overrun  bool // LSR's overrun bit
	deltas   byte // MSR's low half
	thri     bool // the THRE interrupt is due, enabled or not
	fifo     ring // receive FIFO, or holding register when FIFOs are off
	input    ring // bytes from the host that wait for room in the FIFO
	sending  bool // a Send waits for space
	isClosed bool
}

// NewSerial makes a serial port in its reset state and starts the goroutine
// that writes its output. Close ends it.
func NewSerial(c SerialConfig) *Serial {
	s := &Serial{
		irq:   c.IRQ,
		space: make(chan struct{}, 1),
		done:  make(chan struct{}),
		fifo:  newRing(fifoSize),
		input: newRing(inputLimit),
	}
	out := c.Out
	if out == nil {
		out = io.Discard
	}
	s.tx = newTransmitter(out, s.drained)
	return s
}

// Read serves the registers.
func (s *Serial) Read(offset uint64, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range data {
		data[i] = s.read(offset + uint64(i))
	}
	s.update()
}

// Write serves the registers.
func (s *Serial) Write(offset uint64, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, b := range data {
		s.write(offset+uint64(i), b)
	}
	s.update()
}

func (s *Serial) read(reg uint64) byte {
	dlab := s.lcr&lcrDLAB != 0
	switch reg {
	case uartData:
		if dlab {
			return s.divisor[0]
		}
		b := s.fifo.pop()
		s.receive()
		return b
	case uartIER:
		if dlab {
			return s.divisor[1]
		}
		return s.ier
	case uartIIR:
		// DLAB makes no difference here: Linux looks for the registers
		// of other chips in this place, and finds none because what it
		// reads is not zero and has bits 4 and 5 clear.
		id := s.pending()
		if id == iirTHRE {
			// Reading IIR takes back the THRE interrupt, but only
			// when it is the one that is reported.
			s.thri = false
		}
		if s.fcr&fcrEnable != 0 {
			id |= iirFIFO
		}
		return id
	case uartLCR:
		return s.lcr
	case uartMCR:
		return s.mcr
	case uartLSR:
		lsr := s.lineStatus()
		s.overrun = false
		return lsr
	case uartMSR:
		msr := s.modemLines() | s.deltas
		s.deltas = 0
		return msr
	case uartScratch:
		return s.scratch
	}
	return 0xff
}

func (s *Serial) write(reg uint64, b byte) {
	dlab := s.lcr&lcrDLAB != 0
	switch reg {
	case uartData:
		if dlab {
			s.divisor[0] = b
			return
		}
		s.transmit(b)
	case uartIER:
		if dlab {
			s.divisor[1] = b
			return
		}
		// Enabling the THRE interrupt while the transmitter is empty
		// raises it at once, also when an IIR read has taken it back
		// before. Linux tests for this, twice, and polls a UART that
		// fails.
		if b&^s.ier&ierTHRE != 0 {
			s.thri = s.tx.room(fifoSize)
		}
		// The upper half reads as zero, or Linux takes the chip for one
		// that has a sleep mode or is an XScale.
		s.ier = b & ierKept
	case uartFCR:
		s.setFIFO(b)
	case uartLCR:
		s.lcr = b
	case uartMCR:
		s.setModem(b & mcrKept)
	case uartScratch:
		s.scratch = b
	}
}

// transmit takes a byte written to THR.
func (s *Serial) transmit(b byte) {
	if s.mcr&mcrLoop != 0 {
		s.deliver(b)
		s.thri = true
		return
	}
	s.tx.push(b)
	// The write takes the interrupt back and, because the byte is as good
	// as sent, raises it anew. Without room it stays away until drained.
	s.thri = s.tx.room(fifoSize)
}

// drained runs when the transmitter has room again.
func (s *Serial) drained() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.thri = true
	s.update()
}

// deliver puts a byte into the receive FIFO, as if it came in on the line.
func (s *Serial) deliver(b byte) {
	if s.fifo.n < s.depth() {
		s.fifo.push(b)
		return
	}
	s.overrun = true
	if s.fcr&fcrEnable == 0 {
		// Without a FIFO the new byte replaces the old one; with it
		// the new byte is lost.
		s.fifo.clear()
		s.fifo.push(b)
	}
}

func (s *Serial) depth() int {
	if s.fcr&fcrEnable != 0 {
		return fifoSize
	}
	return 1
}

// setFIFO handles a write to FCR. There is nothing that clearing the transmit
// FIFO could take back: its bytes count as sent. The 64-byte mode bit of later
// chips is not kept, so that Linux does not see it in IIR.
func (s *Serial) setFIFO(b byte) {
	if b&fcrEnable == 0 {
		b = 0 // the other bits count only together with this one
	}
	if (b^s.fcr)&fcrEnable != 0 || b&fcrClearRx != 0 {
		s.fifo.clear()
	}
	s.fcr = b & fcrKept
	s.receive()
}

// setModem handles a write to MCR. In loopback mode it changes the modem
// lines, and MSR notes which have changed.
func (s *Serial) setModem(b byte) {
	before := s.modemLines()
	s.mcr = b
	after := s.modemLines()
	changed := before ^ after
	if changed&msrCTS != 0 {
		s.deltas |= msrDeltaCTS
	}
	if changed&msrDSR != 0 {
		s.deltas |= msrDeltaDSR
	}
	if before&^after&msrRI != 0 {
		s.deltas |= msrTrailRI
	}
	if changed&msrDCD != 0 {
		s.deltas |= msrDeltaDCD
	}
	s.receive()
}

// modemLines is the upper half of MSR. The host counts as a modem that is
// always ready, with a carrier. In loopback mode MCR's outputs come back
// instead: Linux takes a port without this for no UART at all.
func (s *Serial) modemLines() byte {
	if s.mcr&mcrLoop == 0 {
		return msrCTS | msrDSR | msrDCD
	}
	var msr byte
	if s.mcr&mcrRTS != 0 {
		msr |= msrCTS
	}
	if s.mcr&mcrDTR != 0 {
		msr |= msrDSR
	}
	if s.mcr&mcrOut1 != 0 {
		msr |= msrRI
	}
	if s.mcr&mcrOut2 != 0 {
		msr |= msrDCD
	}
	return msr
}

// lineStatus is LSR. THRE promises room for a FIFO of bytes. TEMT goes with
// it, although the host may not have seen the bytes yet: Linux waits for TEMT
// after each console line, and would wait for the host.
func (s *Serial) lineStatus() byte {
	var lsr byte
	if s.fifo.n > 0 {
		lsr |= lsrReady
	}
	if s.overrun {
		lsr |= lsrOverrun
	}
	if s.mcr&mcrLoop != 0 || s.tx.room(fifoSize) {
		lsr |= lsrTHRE | lsrTEMT
	}
	return lsr
}

// pending is the interrupt that IIR reports: the enabled one with the highest
// priority. OUT2 does not gate it, as it does on a PC's board: QEMU's does not
// either, and there are guests that never set it.
func (s *Serial) pending() byte {
	switch {
	case s.ier&ierLine != 0 && s.overrun:
		return iirLine
	case s.ier&ierData != 0 && s.fifo.n >= s.trigger():
		return iirData
	case s.ier&ierData != 0 && s.fifo.n > 0:
		// The timeout that tells of a few bytes below the trigger level
		// is four character times, which is none on this line.
		return iirExpire
	case s.ier&ierTHRE != 0 && s.thri:
		return iirTHRE
	case s.ier&ierModem != 0 && s.deltas != 0:
		return iirModem
	}
	return iirNone
}

// trigger is the number of received bytes that raise the data interrupt.
func (s *Serial) trigger() int {
	if s.fcr&fcrEnable == 0 {
		return 1
	}
	return [4]int{1, 4, 8, 14}[s.fcr>>6]
}

// update drives the interrupt line.
func (s *Serial) update() {
	s.irq.Set(s.pending() != iirNone)
}

// receive moves input into the FIFO. Input waits while the guest has RTS low,
// so that what is typed before a driver has opened the port is not lost when
// the driver clears the FIFO, and in loopback mode, which cuts the line.
func (s *Serial) receive() {
	if s.mcr&(mcrRTS|mcrLoop) == mcrRTS {
		for s.input.n > 0 && s.fifo.n < s.depth() {
			s.fifo.push(s.input.pop())
		}
	}
	if s.sending && s.input.free() >= inputLimit/2 {
		s.sending = false
		signal(s.space)
	}
}

// Send hands input to the guest. It waits until all of it is taken, which is
// when the guest reads, or until ctx ends or the port is closed; it returns how
// many bytes were taken. One goroutine may Send at a time.
func (s *Serial) Send(ctx context.Context, p []byte) (int, error) {
	sent := 0
	for {
		n, err := s.offer(p[sent:])
		sent += n
		if sent == len(p) || err != nil {
			return sent, err
		}
		select {
		case <-s.space:
		case <-s.done:
			return sent, ErrClosed
		case <-ctx.Done():
			return sent, context.Cause(ctx)
		}
	}
}

func (s *Serial) offer(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed {
		return 0, ErrClosed
	}
	n := s.input.write(p)
	s.receive()
	s.sending = n < len(p)
	s.update()
	return n, nil
}

// Flush waits until the writer has taken all that the guest has sent. It
// returns the writer's first error, after which output is dropped, or the
// context's.
func (s *Serial) Flush(ctx context.Context) error { return s.tx.flush(ctx) }

// Close flushes, fails a waiting Send with ErrClosed, and ends the goroutine.
// Registers may still be accessed; output goes nowhere. When ctx ends before a
// blocked writer lets go, the goroutine ends as soon as it does.
func (s *Serial) Close(ctx context.Context) error {
	s.mu.Lock()
	if !s.isClosed {
		s.isClosed = true
		close(s.done)
	}
	s.mu.Unlock()
	return s.tx.close(ctx)
}

// Overruns counts the bytes that were lost because the guest sent without
// waiting for LSR.
func (s *Serial) Overruns() uint64 {
	s.tx.mu.Lock()
	defer s.tx.mu.Unlock()
	return s.tx.overruns
}
