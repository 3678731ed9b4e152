package devices

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// host is the writer at the other end of a serial port.
type host struct {
	mu     sync.Mutex
	got    bytes.Buffer
	writes int
	gate   chan struct{} // Write waits for it, if not nil
	fail   error
}

func (h *host) Write(p []byte) (int, error) {
	if h.gate != nil {
		<-h.gate
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writes++
	if h.fail != nil {
		return 0, h.fail
	}
	return h.got.Write(p)
}

func (h *host) text() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.got.String()
}

// port makes a serial port that the test's end closes. To be called in a
// synctest bubble if time matters.
func port(t *testing.T, out io.Writer) (*Serial, *wire) {
	t.Helper()
	irq := &wire{}
	s := NewSerial(SerialConfig{Out: out, IRQ: irq})
	return s, irq
}

func shut(t *testing.T, s *Serial) {
	t.Helper()
	if err := s.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

func sendString(t *testing.T, s *Serial, text string) {
	t.Helper()
	if n, err := s.Send(context.Background(), []byte(text)); n != len(text) || err != nil {
		t.Fatalf("Send took %d of %d bytes: %v", n, len(text), err)
	}
}

// TestSerialLinuxProbe goes through the checks by which Linux tells a 16550A
// from no UART, from older ones and from later ones.
func TestSerialLinuxProbe(t *testing.T) {
	s, irq := port(t, nil)
	defer shut(t, s)
	check := func(what string, got, want byte) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %#x, want %#x", what, got, want)
		}
	}
	out8(s, uartIER, 0)
	check("IER cleared", in8(s, uartIER), 0)
	out8(s, uartIER, 0x0f)
	check("IER set", in8(s, uartIER)&0x0f, 0x0f)
	out8(s, uartIER, 0)

	out8(s, uartMCR, mcrLoop|mcrOut2|mcrRTS)
	check("MSR in loopback", in8(s, uartMSR)&0xf0, 0x90)
	out8(s, uartMCR, 0)

	out8(s, uartLCR, 0xbf)
	out8(s, uartFCR, 0)
	out8(s, uartLCR, 0)
	out8(s, uartFCR, fcrEnable)
	check("FIFO bits of IIR", in8(s, uartIIR)>>6, 3)

	for _, lcr := range []byte{0x80, 0xbf} {
		out8(s, uartLCR, lcr)
		if in8(s, uartIIR) == 0 {
			t.Errorf("with LCR %#x there seems to be an EFR", lcr)
		}
	}
	out8(s, uartLCR, 0xe0)
	before := in8(s, uartIIR)
	out8(s, uartLCR, 0)
	out8(s, uartMCR, mcrLoop)
	out8(s, uartLCR, 0xe0)
	check("NatSemi EXCR1 loop bit", (in8(s, uartIIR)^before)&mcrLoop, 0)
	out8(s, uartLCR, 0)
	out8(s, uartMCR, 0)

	out8(s, uartFCR, fcrEnable|0x20)
	check("IIR with a 64-byte FIFO asked for", in8(s, uartIIR)>>5, 6)
	out8(s, uartIER, 0x40)
	check("UUE bit of IER", in8(s, uartIER), 0)

	// The THRE test and the TXEN test of the driver's startup.
	for _, what := range []string{"first", "second", "TXEN"} {
		out8(s, uartIER, ierTHRE)
		check(what+" LSR", in8(s, uartLSR)&lsrTEMT, lsrTEMT)
		check(what+" IIR", in8(s, uartIIR)&0x0f, iirTHRE)
		out8(s, uartIER, 0)
	}
	if lsr := in8(s, uartLSR); lsr == 0xff {
		t.Error("LSR reads as if nothing were there")
	}
	if irq.high() {
		t.Error("the line is asserted with no interrupt enabled")
	}

	// size_fifo: 256 bytes in loopback, 16 come back.
	out8(s, uartFCR, fcrEnable|fcrClearRx)
	out8(s, uartMCR, mcrLoop)
	for i := range 256 {
		out8(s, uartData, byte(i))
	}
	n := byte(0)
	for ; in8(s, uartLSR)&lsrReady != 0; n++ {
		check("byte in loopback", in8(s, uartData), n)
	}
	check("size of the FIFO", n, fifoSize)
}

func TestSerialScratchAndDivisor(t *testing.T) {
	s, _ := port(t, nil)
	defer shut(t, s)
	out8(s, uartScratch, 0xa5)
	out8(s, uartIER, ierModem)
	out8(s, uartLCR, lcrDLAB|3)
	s.Write(uartData, []byte{0x01, 0x02}) // both divisor bytes at once
	if in8(s, uartData) != 1 || in8(s, uartIER) != 2 {
		t.Error("the divisor does not read back")
	}
	out8(s, uartLCR, 3)
	if got := in8(s, uartIER); got != ierModem {
		t.Errorf("IER is %#x after writing the divisor", got)
	}
	if got := in8(s, uartScratch); got != 0xa5 {
		t.Errorf("scratch is %#x", got)
	}
}

func TestSerialTHRE(t *testing.T) {
	s, irq := port(t, nil)
	defer shut(t, s)
	out8(s, uartIER, ierTHRE)
	if !irq.high() {
		t.Fatal("enabling the interrupt with an empty transmitter raises nothing")
	}
	if id := in8(s, uartIIR); id != iirTHRE {
		t.Fatalf("IIR is %#x", id)
	}
	if irq.high() || in8(s, uartIIR) != iirNone {
		t.Error("reading IIR does not take the interrupt back")
	}
	irq.edges()
	out8(s, uartIER, ierTHRE) // not a rising enable
	if irq.edges() != 0 {
		t.Error("writing the same IER raises the interrupt")
	}
	for range fifoSize {
		out8(s, uartData, 'x')
	}
	if n := irq.edges(); n != 1 {
		t.Errorf("a FIFO of bytes raises %d interrupts, want 1", n)
	}
	// A higher interrupt hides it, and its IIR read takes nothing back.
	out8(s, uartMCR, mcrRTS)
	out8(s, uartIER, ierTHRE|ierData)
	sendString(t, s, "a")
	if id := in8(s, uartIIR); id != iirData {
		t.Errorf("IIR is %#x with received data, want %#x", id, iirData)
	}
	in8(s, uartData)
	if id := in8(s, uartIIR); id != iirTHRE {
		t.Errorf("IIR is %#x after the data is read, want %#x", id, iirTHRE)
	}
}

func TestSerialReceiveInterrupts(t *testing.T) {
	tests := []struct {
		name string
		fcr  byte
		n    int
		want byte
	}{
		{"no FIFO", 0, 1, iirData},
		{"trigger 1", fcrEnable, 1, iirData | iirFIFO},
		{"below 4", fcrEnable | 1<<6, 3, iirExpire | iirFIFO},
		{"at 4", fcrEnable | 1<<6, 4, iirData | iirFIFO},
		{"below 8", fcrEnable | 2<<6, 7, iirExpire | iirFIFO},
		{"at 8", fcrEnable | 2<<6, 8, iirData | iirFIFO},
		{"below 14", fcrEnable | 3<<6, 13, iirExpire | iirFIFO},
		{"at 14", fcrEnable | 3<<6, 14, iirData | iirFIFO},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s, irq := port(t, nil)
			defer shut(t, s)
			out8(s, uartFCR, test.fcr)
			out8(s, uartMCR, mcrRTS)
			out8(s, uartIER, ierData)
			sendString(t, s, strings.Repeat("z", test.n))
			if id := in8(s, uartIIR); id != test.want {
				t.Errorf("IIR %#x, want %#x", id, test.want)
			}
			for i := range test.n {
				if !irq.high() {
					t.Fatalf("the line fell with %d bytes unread", test.n-i)
				}
				in8(s, uartData)
			}
			if irq.high() || in8(s, uartLSR)&lsrReady != 0 {
				t.Error("there is still data when all is read")
			}
		})
	}
}

func TestSerialOverrunAndModem(t *testing.T) {
	s, irq := port(t, nil)
	defer shut(t, s)
	out8(s, uartIER, ierLine|ierModem)
	out8(s, uartMCR, mcrLoop)
	if in8(s, uartIIR) != iirModem || in8(s, uartMSR) != msrDeltaCTS|msrDeltaDSR|msrDeltaDCD || irq.high() {
		t.Error("entering loopback does not drop the modem lines and say so once")
	}
	out8(s, uartMCR, mcrLoop|mcrOut1)
	in8(s, uartMSR)
	out8(s, uartMCR, mcrLoop)
	if msr := in8(s, uartMSR); msr != msrTrailRI {
		t.Errorf("MSR %#x after the ring indicator fell", msr)
	}
	out8(s, uartData, 'a')
	out8(s, uartData, 'b') // no FIFO: replaces
	if id := in8(s, uartIIR); id != iirLine {
		t.Errorf("IIR %#x after an overrun", id)
	}
	if lsr := in8(s, uartLSR); lsr&(lsrOverrun|lsrReady) != lsrOverrun|lsrReady {
		t.Errorf("LSR %#x after an overrun", lsr)
	}
	if lsr := in8(s, uartLSR); lsr&lsrOverrun != 0 || irq.high() {
		t.Error("reading LSR does not clear the overrun")
	}
	if b := in8(s, uartData); b != 'b' {
		t.Errorf("read %q, want the newer byte", b)
	}
	out8(s, uartMCR, 0)
	if msr := in8(s, uartMSR) & 0xf0; msr != msrCTS|msrDSR|msrDCD {
		t.Errorf("modem lines %#x outside loopback", msr)
	}
}

// TestSerialRestoreMidTransmit saves a port whose guest waits for room, with
// the interrupt already taken, and expects it to be told after the restore.
func TestSerialRestoreMidTransmit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{gate: make(chan struct{})}
		s, _ := port(t, h)
		out8(s, uartFCR, fcrEnable)
		out8(s, uartMCR, mcrRTS|mcrOut2)
		out8(s, uartIER, ierTHRE|ierData)
		for in8(s, uartLSR)&lsrTHRE != 0 {
			out8(s, uartData, 'x')
		}
		in8(s, uartIIR)
		sendString(t, s, strings.Repeat("in", 20))
		for range fifoSize {
			in8(s, uartData)
		}

		other, irq := port(t, nil)
		irq.Set(true) // as the interrupt controller had it
		irq.edges()
		roundTrip(t, s.Save, other)
		if irq.edges() != 1 {
			t.Error("no new interrupt after the restore")
		}
		got := ""
		for in8(other, uartLSR)&lsrReady != 0 {
			got += string(in8(other, uartData))
		}
		if want := strings.Repeat("in", 12); got != want {
			t.Errorf("input after the restore %q, want %q", got, want)
		}
		if id := in8(other, uartIIR) & 0x0f; id != iirTHRE {
			t.Errorf("IIR %#x after the restore, want %#x", id, iirTHRE)
		}
		close(h.gate)
		shut(t, s)
		shut(t, other)
	})
}

func TestSerialRestoreRefuses(t *testing.T) {
	tests := []struct {
		name   string
		break_ func(*SerialState)
	}{
		{"version", func(s *SerialState) { s.Version = 99 }},
		{"IER", func(s *SerialState) { s.IER = 0xff }},
		{"MCR", func(s *SerialState) { s.MCR = 0xff }},
		{"FCR", func(s *SerialState) { s.FCR = fcrClearRx }},
		{"deltas", func(s *SerialState) { s.Deltas = 0x10 }},
		{"FIFO without FIFO mode", func(s *SerialState) { s.FIFO = make([]byte, 2) }},
		{"FIFO", func(s *SerialState) { s.FCR, s.FIFO = fcrEnable, make([]byte, 17) }},
		{"input", func(s *SerialState) { s.Input = make([]byte, inputLimit+1) }},
	}
	s, _ := port(t, nil)
	defer shut(t, s)
	for _, test := range tests {
		st := s.Save()
		test.break_(&st)
		if err := s.Restore(st); err == nil {
			t.Errorf("%s: restored", test.name)
		}
	}
}

func TestSerialAllocatesNothing(t *testing.T) {
	s, _ := port(t, nil)
	defer shut(t, s)
	data := []byte{'x'}
	out8(s, uartFCR, fcrEnable)
	out8(s, uartMCR, mcrRTS)
	sendString(t, s, strings.Repeat("x", 300))
	noAllocs(t, "a register access", func() {
		for reg := range uint64(SerialPorts) {
			s.Read(reg, data)
		}
		s.Write(uartData, data)
	})
}

func FuzzSerial(f *testing.F) {
	f.Add([]byte{1, uartMCR, mcrRTS, 0, 1, uartFCR, 1, 0, 8, 0, 5, 0, 0, uartData, 0, 0}, "hello")
	f.Add([]byte{1, uartMCR, mcrLoop, 0, 7, 0, 0x41, 0x42, 1, uartIER, 0x0f, 0, 0, uartIIR, 0, 0}, "")
	f.Fuzz(func(t *testing.T, program []byte, input string) {
		irq := &wire{}
		s := NewSerial(SerialConfig{IRQ: irq})
		other := NewSerial(SerialConfig{IRQ: &wire{}})
		defer shut(t, s)
		defer shut(t, other)
		if len(input) > inputLimit {
			input = input[:inputLimit]
		}
		sendString(t, s, input)
		play(s, SerialPorts, program)
		if irq.high() != (s.pending() != iirNone) {
			t.Error("line and IIR disagree")
		}
		if s.fifo.n > s.depth() {
			t.Errorf("%d bytes in a FIFO of %d", s.fifo.n, s.depth())
		}
		roundTrip(t, s.Save, other)
	})
}
