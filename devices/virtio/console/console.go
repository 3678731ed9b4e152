// Package console is the virtio console (virtio 1.2 §5.3) with one port: hvc0 in
// a Linux guest. It is as fast as the writer and the reader at its ends, where a
// serial port takes an exit for each byte.
package console

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/devices/virtio"
)

// Feature bits (§5.3.3). MULTIPORT is not offered: there is one port.
const (
	featureSize      uint64 = 1 << 0 // VIRTIO_CONSOLE_F_SIZE
	featureEmergency uint64 = 1 << 2 // VIRTIO_CONSOLE_F_EMERG_WRITE
)

// The device configuration space (§5.3.4): offsets of its little-endian fields,
// and its size. Between rows and emerg_wr is the number of ports, of MULTIPORT.
const (
	configCols      = 0 // 16 bits
	configRows      = 2 // 16 bits
	configEmergency = 8 // 32 bits
	configSize      = 12
)

// inputLimit bounds the input that waits for the guest to take it.
const inputLimit = 4096

// Config says how a console is wired.
type Config struct {
	// Out gets what the guest writes, from one goroutine; nil discards it. A
	// writer that blocks holds the guest's writers back, for a while: see
	// Patience.
	Out io.Writer
	// Cols and Rows are the size of the terminal, 0 if it has none.
	Cols, Rows uint16
	// Warn is told about an error of the host, once for each kind; nil
	// ignores it. It may be called from any goroutine.
	Warn func(error)
}

// Device is a console. Its methods may be called from any goroutine, but for
// those of virtio.Device, which are the transport's, and for Save and Restore,
// for which the device is stopped.
type Device struct {
	config Config
	out    *output
	// room gets a token when there may be room for input. Of several that
	// wait for it, each passes it on.
	room chan struct{}
	done chan struct{} // closed by Close

	mu      sync.Mutex
	closed  bool
	space   [configSize]byte // the device configuration space
	input   []byte           // what the guest has not taken yet
	read    uint64           // how much it has taken
	sent    uint32           // how much of the first chain in the transmit queue is taken
	service *service         // nil unless started
	warned  map[string]bool
}

var _ virtio.Device = (*Device)(nil)

// New makes a console and starts the goroutine that writes its output, which
// Close ends.
func New(c Config) (*Device, error) {
	d := &Device{
		config: c, room: make(chan struct{}, 1), done: make(chan struct{}),
		input: make([]byte, 0, inputLimit), warned: make(map[string]bool),
	}
	d.setSize(c.Cols, c.Rows)
	d.out = newOutput(c.Out, d.kickTransmit, d.warn)
	return d, nil
}

// Type of the device.
func (d *Device) Type() virtio.DeviceType { return virtio.TypeConsole }

// Features that are offered.
func (d *Device) Features() uint64 { return featureSize | featureEmergency }

// ReadConfig reads the configuration space.
func (d *Device) ReadConfig(offset uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	virtio.ReadConfig(d.space[:], offset, p)
}

// WriteConfig takes a byte to print from emerg_wr, with which a guest can say
// something before it has queues (§5.3.4).
func (d *Device) WriteConfig(offset uint64, p []byte) {
	if offset <= configEmergency && configEmergency-offset < uint64(len(p)) {
		d.out.put(p[configEmergency-offset])
	}
}

// Resize tells the guest the size of the terminal.
func (d *Device) Resize(cols, rows uint16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setSize(cols, rows)
	if d.service != nil {
		// With the lock, which Stop waits for.
		d.service.driver.ConfigChanged()
	}
}

func (d *Device) setSize(cols, rows uint16) {
	binary.LittleEndian.PutUint16(d.space[configCols:], cols)
	binary.LittleEndian.PutUint16(d.space[configRows:], rows)
}

func (d *Device) hasSize() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return [4]byte(d.space[configCols:]) != [4]byte{}
}

// Send gives the guest input. It returns when the device has taken all of p, of
// which it holds 4 KiB for a guest that does not read, and else with how much it
// has taken and why not more.
func (d *Device) Send(ctx context.Context, p []byte) (int, error) {
	defer signal(d.room)
	sent := 0
	for {
		n, err := d.offer(p[sent:])
		sent += n
		if sent == len(p) || err != nil {
			return sent, err
		}
		select {
		case <-d.room:
		case <-d.done:
		case <-ctx.Done():
			return sent, context.Cause(ctx)
		}
	}
}

// offer takes as much of p as there is room for.
func (d *Device) offer(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return 0, devices.ErrClosed
	}
	n := min(len(p), inputLimit-len(d.input))
	d.input = append(d.input, p[:n]...)
	if d.service != nil && d.service.receive != nil && n > 0 {
		d.service.receive.Kick()
	}
	return n, nil
}

// give copies waiting input to a request of the guest, and returns how much.
func (d *Device) give(c *virtio.Chain) uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := c.CopyIn(0, d.input)
	d.input = d.input[:copy(d.input, d.input[n:])]
	d.read += uint64(n)
	signal(d.room)
	return uint32(n)
}

func (d *Device) hasInput() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.input) > 0
}

// kickTransmit has the transmit queue served again.
func (d *Device) kickTransmit() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.service != nil && d.service.transmit != nil {
		d.service.transmit.Kick()
	}
}

// Reset forgets what the driver has said. Input that has not been taken remains.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sent = 0
}

// Flush waits until everything that the guest has written so far has been
// written to Config.Out, and returns the first error of that, or of the context.
func (d *Device) Flush(ctx context.Context) error { return d.out.flush(ctx) }

// Close ends the goroutine that writes the output, as soon as Config.Out lets go
// of it; see Flush. A Send that waits fails.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.closed = true
		close(d.done)
		d.out.close()
	}
	return nil
}

// warn tells the operator about the first error of a kind.
func (d *Device) warn(kind string, err error) {
	d.mu.Lock()
	known := d.warned[kind]
	d.warned[kind] = true
	d.mu.Unlock()
	if !known && d.config.Warn != nil {
		d.config.Warn(fmt.Errorf("console: %w", err))
	}
}

// signal leaves a token in a channel of capacity one, without blocking.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
