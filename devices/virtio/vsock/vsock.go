// Package vsock is the virtio socket device (§5.10): stream connections between
// programs of the guest and programs of the host, without a network.
//
// On the host the device is an AF_UNIX socket, by the convention that
// Firecracker and Cloud Hypervisor share. A program that connects to the
// socket's path and writes "CONNECT 1024\n" reaches port 1024 of the guest: it
// reads "OK PORT\n" when the guest has accepted, and the end of file when it has
// not (Dial does that). A program of the guest that connects to port 1024 of the
// host (CID 2) reaches whoever listens at the path with "_1024" appended.
//
// One goroutine does everything, driven by epoll. Data is read from a socket
// straight into the guest's buffers and written from them straight to the
// socket. What a socket does not take waits in a buffer whose size the guest is
// told (§5.10.6.3); what the guest does not take stays in the socket.
//
// Connections do not outlive the process: after a restore the guest gets a
// transport reset event (§5.10.6.7), and nothing else before it has seen that.
package vsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

// FeatureStream is VIRTIO_VSOCK_F_STREAM: stream sockets (§5.10.3).
const FeatureStream uint64 = 1 << 0

// The queues (§5.10.2), and their sizes.
const (
	rxQueue = iota // to the guest
	txQueue        // from the guest
	eventQueue

	// dataQueueSize is enough: Linux keeps 4 KiB in each buffer of the rx
	// queue, and a connection's window is 256 KiB there.
	dataQueueSize  = 128
	eventQueueSize = 16
)

// Limits.
const (
	// MaxConnections is how many connections there may be at once. When a
	// guest opens more they are refused; more of the host's wait.
	MaxConnections = 1024
	// maxGreeting is how many of the host's programs may be connected and
	// not have said yet which port they want.
	maxGreeting = 128
	// largeWindow is how much of a connection may wait for the host's socket
	// to take it, for the first largeWindows connections; of any more only
	// smallWindow. A device thereby never holds more than 60 MiB.
	largeWindow  = 256 << 10
	largeWindows = 128
	smallWindow  = 32 << 10
	// maxSpare is how many large windows are kept for the next connection
	// that needs one.
	maxSpare = 4
	// maxData is the most that one packet carries; Linux has the same limit.
	maxData = 64 << 10
	// maxBurst is how many of the guest's buffers one read from a socket
	// fills at most.
	maxBurst = 16
	// maxResets is how many resets for connections that do not exist may wait
	// for a buffer of the guest. When so many do, no packet of the guest is
	// taken until it gives buffers (§5.10.6.1.2).
	maxResets = 256
	// batch is how many packets go in one direction before it is the other's
	// turn, and rounds is how many of such turns there are before the loop
	// looks at other events.
	batch  = 64
	rounds = 16
)

// Config says what the device is to be.
type Config struct {
	// CID is the guest's context identifier, MinCID to MaxCID; 0 is MinCID.
	CID uint64
	// Path of the socket that the device listens at. Only the owner of the
	// process may connect to it.
	Path string
	// Warn is told about trouble of the host, once for each kind. nil
	// ignores it. It is called from any goroutine.
	Warn func(error)
}

// Device is the socket device of one guest. It implements virtio.Device.
type Device struct {
	cfg      Config
	cid      uint64
	listener listener
	loop     *virtio.Loop
	warnings [kindsOfTrouble]sync.Once
	counts   counts

	// The rest belongs to the loop while the device is started.
	drv     virtio.Driver
	started bool
	failed  bool // the driver broke a rule; nothing is served until the next start
	// reset is how far the transport reset event has come, and unseen how
	// many buffers the event queue had when it was sent.
	reset    resetStage
	unseen   int
	conns    map[ports]*conn
	portless map[*conn]struct{} // those that have no ports yet, or not any more
	greeters int                // how many have not said yet which port they want
	lastPort uint32
	ready    list    // those that have something for the guest
	waiting  []*conn // those that are to be connected when the timer has run
	timer    int
	resets   resets
	spare    [][]byte // memory of large windows that nobody uses
	large    int      // how many have a large window

	// gave says that the guest was given data since poller last looked for
	// an answer.
	gave   bool
	poller virtio.Poller

	// Memory of one operation, kept for the next.
	tx   virtio.Chain
	rx   [maxBurst]virtio.Chain
	vec  vector
	raw  [headerSize]byte
	line [maxGreetingLine]byte
}

// New makes a device and its socket. Programs of the host can connect at once;
// they wait until the guest is there.
func New(c Config) (*Device, error) {
	if c.CID == 0 {
		c.CID = MinCID
	}
	if c.CID < MinCID || c.CID > MaxCID {
		return nil, fmt.Errorf("vsock: guest CID %d: want %d to %d", c.CID, MinCID, uint64(MaxCID))
	}
	if c.Path == "" || len(c.Path) > maxPath-maxSuffix {
		return nil, fmt.Errorf("vsock: path %q of the socket: want 1 to %d bytes", c.Path, maxPath-maxSuffix)
	}
	l, err := listen(c.Path)
	if err != nil {
		return nil, fmt.Errorf("vsock: %w", err)
	}
	d := &Device{
		cfg: c, cid: c.CID, listener: l, timer: -1, lastPort: firstPort - 1,
		conns: make(map[ports]*conn), portless: make(map[*conn]struct{}),
	}
	if err := d.makeLoop(); err != nil {
		return nil, errors.Join(fmt.Errorf("vsock: %w", err), d.Close())
	}
	return d, nil
}

func (d *Device) makeLoop() error {
	var err error
	if d.loop, err = virtio.NewLoop(); err != nil {
		return err
	}
	if d.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return fmt.Errorf("timer: %w", err)
	}
	// Each time that the timer has run is an edge.
	return errors.Join(
		d.loop.Add(d.timer, unix.EPOLLIN|unix.EPOLLET, func(uint32) { d.retry() }),
		d.loop.Add(d.listener.fd, unix.EPOLLIN|unix.EPOLLET, func(uint32) {
			d.listener.waiting = true
			d.serve()
		}),
	)
}

// Close ends all connections and removes the socket. The device is stopped; once
// closed it is of no use. A second Close does nothing.
func (d *Device) Close() error {
	errs := []error{d.listener.close()}
	if d.timer >= 0 {
		errs = append(errs, unix.Close(d.timer))
		d.timer = -1
	}
	if d.loop != nil {
		d.Reset()
		errs = append(errs, d.loop.Close())
		d.loop = nil
	}
	return errors.Join(errs...)
}

// Type is virtio.TypeVsock.
func (d *Device) Type() virtio.DeviceType { return virtio.TypeVsock }

// Features are those of §5.10.3 that the device has.
func (d *Device) Features() uint64 { return FeatureStream }

// QueueSizes are those of the rx, tx and event queue.
func (d *Device) QueueSizes() []uint16 {
	return []uint16{dataQueueSize, dataQueueSize, eventQueueSize}
}

// ReadConfig reads struct virtio_vsock_config, the guest's CID (§5.10.4).
func (d *Device) ReadConfig(offset uint64, p []byte) {
	virtio.ReadConfig(binary.LittleEndian.AppendUint64(nil, d.cid), offset, p)
}

// WriteConfig does nothing: the CID is read-only.
func (d *Device) WriteConfig(uint64, []byte) {}

// Start begins to serve the queues, all three of which there must be.
func (d *Device) Start(drv virtio.Driver) error {
	if err := d.attach(drv); err != nil {
		return err
	}
	for i, q := range drv.Queues {
		f := d.serve
		if i == eventQueue {
			f = d.serveEvents
		}
		if err := d.loop.AddQueue(q, f); err != nil {
			return errors.Join(err, d.detach())
		}
		q.Kick()
	}
	d.loop.Start()
	return nil
}

// attach takes the driver over. What happened while the device was stopped is
// found out by looking.
func (d *Device) attach(drv virtio.Driver) error {
	for i := range d.QueueSizes() {
		if drv.Queues[i] == nil {
			return fmt.Errorf("vsock: the driver did not set up queue %d", i)
		}
	}
	d.drv, d.started, d.failed = drv, true, false
	d.reset = d.reset.again()
	return nil
}

// detach forgets the queues.
func (d *Device) detach() error {
	var errs []error
	for _, q := range d.drv.Queues {
		// Only those are missing that Start did not come to.
		if err := d.loop.Remove(q.EventFD()); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	d.drv, d.started = virtio.Driver{}, false
	return errors.Join(errs...)
}

// Stop ends the service. Connections stay, and go on after the next start.
func (d *Device) Stop() {
	if d.started {
		d.loop.Stop()
		// There is no error for descriptors that are open.
		_ = d.detach()
	}
}

// Reset closes all connections: the driver does not know them any more.
func (d *Device) Reset() {
	d.closeAll()
	d.reset = resetNone
}

// fail takes the device out of service. Programs of the host learn of it at
// once.
func (d *Device) fail(err error) {
	d.failed = true
	d.closeAll()
	d.drv.Fail(fmt.Errorf("vsock: %w", err))
}

// serve moves packets both ways until there is nothing to do, or it is the turn
// of other events.
func (d *Device) serve() {
	for range rounds {
		if d.failed {
			return
		}
		d.acceptSome()
		fromGuest, err := d.takePackets()
		if err != nil {
			d.fail(err)
			return
		}
		toGuest, err := d.givePackets()
		if err != nil {
			d.fail(err)
			return
		}
		if !fromGuest && !toGuest && !d.canAccept() && !d.answered() {
			return
		}
	}
	d.drv.Queues[txQueue].Kick()
}

// answered waits a little for the guest's answer to data that it was given. What
// the guest sends by itself is not waited for: the next thing to come may as well
// be the host's answer.
func (d *Device) answered() bool {
	if !d.gave {
		return false
	}
	d.gave = false
	q := d.drv.Queues[txQueue]
	return d.poller.Poll(q.Available)
}

// trouble is a kind of trouble that Config.Warn is told once.
type trouble int

const (
	troubleAccept trouble = iota
	troubleConnect
	troubleSocket
	kindsOfTrouble
)

func (d *Device) warn(kind trouble, err error) {
	if d.cfg.Warn != nil {
		d.warnings[kind].Do(func() { d.cfg.Warn(fmt.Errorf("vsock: %w", err)) })
	}
}
