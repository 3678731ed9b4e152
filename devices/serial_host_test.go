package devices

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestSerialBatchesOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{}
		s, _ := port(t, h)
		out8(s, uartData, 'x')
		synctest.Wait()
		if h.text() != "x" {
			t.Errorf("%q after a byte that others do not follow at once, want it to be there at once", h.text())
		}
		for range 999 {
			out8(s, uartData, 'x')
			time.Sleep(transmitDelay / 1001)
		}
		time.Sleep(2 * transmitDelay)
		synctest.Wait()
		if got := len(h.text()); got != 1000 || h.writes != 2 {
			t.Errorf("%d bytes in %d writes, want 1000 in 2", got, h.writes)
		}
		out8(s, uartData, 'y')
		if err := s.Flush(context.Background()); err != nil {
			t.Error(err)
		}
		if got := len(h.text()); got != 1001 {
			t.Errorf("%d bytes after Flush, want 1001", got)
		}
		shut(t, s)
		out8(s, uartData, '!')
		if err := s.Flush(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func TestSerialCloseFlushes(t *testing.T) {
	for i := range 50 {
		h := &host{}
		s, _ := port(t, h)
		out8(s, uartData, 'z')
		shut(t, s)
		if h.text() != "z" {
			t.Fatalf("round %d: Close lost output", i)
		}
	}
}

// TestSerialBackPressure has a host that reads nothing for a while.
func TestSerialBackPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{gate: make(chan struct{})}
		s, irq := port(t, h)
		out8(s, uartIER, ierTHRE)
		var sent bytes.Buffer
		for i := 0; in8(s, uartLSR)&lsrTHRE != 0; i++ {
			for range fifoSize {
				out8(s, uartData, byte(i))
				sent.WriteByte(byte(i))
			}
			if sent.Len() > 4*transmitLimit {
				t.Fatal("the guest is never held back")
			}
			synctest.Wait()
		}
		in8(s, uartIIR) // takes back what was raised before it was full
		if id := in8(s, uartIIR); id != iirNone {
			t.Errorf("IIR %#x while the transmitter is full", id)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := s.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Flush to a blocked host: %v", err)
		}
		// A guest that does not look loses what does not fit, no more.
		for range 100 * fifoSize {
			out8(s, uartData, '!')
		}
		if s.Overruns() == 0 {
			t.Error("nothing was lost, where did it go?")
		}
		irq.edges()
		close(h.gate)
		if err := s.Flush(context.Background()); err != nil {
			t.Error(err)
		}
		if irq.edges() == 0 || in8(s, uartLSR)&lsrTHRE == 0 {
			t.Error("the guest is not told that it can go on")
		}
		if !strings.HasPrefix(h.text(), sent.String()) {
			t.Error("output sent with LSR's permission was lost or changed")
		}
		shut(t, s)
	})
}

func TestSerialWriterFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{fail: io.ErrClosedPipe}
		s, _ := port(t, h)
		for range 3 * transmitLimit {
			out8(s, uartData, 'x')
			if in8(s, uartLSR)&lsrTHRE == 0 {
				time.Sleep(transmitDelay)
				synctest.Wait()
			}
		}
		if err := s.Flush(context.Background()); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Flush: %v, want the writer's error", err)
		}
		if h.writes != 1 {
			t.Errorf("%d writes to a writer that fails, want 1", h.writes)
		}
		if in8(s, uartLSR)&lsrTHRE == 0 {
			t.Error("a dead host holds the guest back for ever")
		}
		if err := s.Close(context.Background()); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Close: %v, want the writer's error", err)
		}
	})
}

func TestSerialSendWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, irq := port(t, nil)
		out8(s, uartFCR, fcrEnable)
		out8(s, uartIER, ierData)
		text := strings.Repeat("0123456789", 1000)
		done := make(chan error, 1)
		go func() {
			_, err := s.Send(context.Background(), []byte(text))
			done <- err
		}()
		synctest.Wait()
		if irq.high() || in8(s, uartLSR)&lsrReady != 0 {
			t.Error("input arrives although RTS is low")
		}
		out8(s, uartMCR, mcrRTS)
		if !irq.high() {
			t.Error("no interrupt for the input that waited")
		}
		// Clearing the FIFO loses a FIFO, and what waits behind it not.
		out8(s, uartFCR, fcrEnable|fcrClearRx)
		var got []byte
		for in8(s, uartLSR)&lsrReady != 0 {
			got = append(got, in8(s, uartData))
			synctest.Wait()
		}
		if string(got) != text[fifoSize:] {
			t.Errorf("read %d bytes, want %d in order", len(got), len(text)-fifoSize)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}

		out8(s, uartMCR, 0)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if n, err := s.Send(ctx, []byte(text)); n != inputLimit || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Send to a guest that does not read took %d: %v", n, err)
		}
		go func() {
			_, err := s.Send(context.Background(), []byte("more"))
			done <- err
		}()
		synctest.Wait()
		shut(t, s)
		if err := <-done; !errors.Is(err, ErrClosed) {
			t.Errorf("a waiting Send ends with %v at Close", err)
		}
		if _, err := s.Send(context.Background(), []byte("x")); !errors.Is(err, ErrClosed) {
			t.Errorf("Send after Close: %v", err)
		}
	})
}

// TestSerialConcurrent has two vCPUs, a pump and a slow host at the port.
func TestSerialConcurrent(t *testing.T) {
	h := &host{}
	s, _ := port(t, h)
	out8(s, uartFCR, fcrEnable)
	out8(s, uartMCR, mcrRTS)
	ctx, cancel := context.WithCancel(context.Background())
	var pump, vcpus sync.WaitGroup
	pump.Go(func() {
		for ctx.Err() == nil {
			_, _ = s.Send(ctx, []byte("input input input"))
		}
	})
	for range 2 {
		vcpus.Go(func() {
			for sent := 0; sent < 20000; {
				if in8(s, uartLSR)&lsrTHRE != 0 {
					out8(s, uartData, 'o')
					sent++
				}
				in8(s, uartData)
				in8(s, uartIIR)
			}
		})
	}
	vcpus.Wait()
	cancel()
	pump.Wait()
	shut(t, s)
	if got := len(h.text()) + int(s.Overruns()); got != 40000 {
		t.Errorf("%d bytes came out or were counted as lost, want 40000", got)
	}
}
