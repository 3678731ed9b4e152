package machine

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/vcpu"
)

// exitTrace writes a line for each access of the guest to a device, for people
// who debug a guest or a device. It is slow, and made for that.
type exitTrace struct {
	mu    sync.Mutex
	w     io.Writer
	start time.Time
}

// wrap puts the trace between the processors and a bus.
func (t *exitTrace) wrap(kind string, b vcpu.Bus) vcpu.Bus {
	return &tracedBus{trace: t, kind: kind, bus: b}
}

type tracedBus struct {
	trace *exitTrace
	kind  string
	bus   vcpu.Bus
}

// Read writes the line after the access: the value is known only then.
func (b *tracedBus) Read(addr uint64, data []byte) {
	b.bus.Read(addr, data)
	b.trace.line(b.kind, "read ", addr, data)
}

// Write writes the line first: the access may be the machine's last.
func (b *tracedBus) Write(addr uint64, data []byte) {
	b.trace.line(b.kind, "write", addr, data)
	b.bus.Write(addr, data)
}

func (t *exitTrace) line(kind, op string, addr uint64, data []byte) {
	var value [8]byte
	copy(value[:], data)
	t.mu.Lock()
	defer t.mu.Unlock()
	// A trace that cannot be written is no reason to stop the guest.
	fmt.Fprintf(t.w, "%12.6f %s %s %#x %d %#x\n",
		time.Since(t.start).Seconds(), kind, op, addr, len(data), binary.LittleEndian.Uint64(value[:]))
}
