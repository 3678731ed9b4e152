// Package blk is the virtio block device (§5.2): a disk for the guest, from a
// raw image file or a block device of the host.
//
// What the page cache of the host has, or takes, at once is copied on the
// goroutine that serves the queue: handing a request to another thread costs
// many times what copying 4 KiB does. Reads that would block and direct I/O go to
// the kernel's io_uring, the rest of what would block to a pool of goroutines, as
// does all of it where the host has no io_uring, and the queue is served on
// meanwhile. BenchmarkEngines compares the ways.
//
// This file says what the device is, image.go and lock.go are about the file
// behind it, request.go and segments.go are about what drivers ask for,
// service.go is how a queue is served, transfer.go, pool.go and ring.go how data
// is moved, and state.go is what is saved. The image may be kept as it is, with
// all writes in another file: overlay.go and those beside it.
package blk

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
	"golang.org/x/sys/unix"
)

// Feature bits of the device (§5.2.3).
const (
	FeatureSegMax      uint64 = 1 << 2  // VIRTIO_BLK_F_SEG_MAX
	FeatureReadOnly    uint64 = 1 << 5  // VIRTIO_BLK_F_RO
	FeatureBlockSize   uint64 = 1 << 6  // VIRTIO_BLK_F_BLK_SIZE
	FeatureFlush       uint64 = 1 << 9  // VIRTIO_BLK_F_FLUSH
	FeatureTopology    uint64 = 1 << 10 // VIRTIO_BLK_F_TOPOLOGY
	FeatureConfigWCE   uint64 = 1 << 11 // VIRTIO_BLK_F_CONFIG_WCE
	FeatureMultiQueue  uint64 = 1 << 12 // VIRTIO_BLK_F_MQ
	FeatureDiscard     uint64 = 1 << 13 // VIRTIO_BLK_F_DISCARD
	FeatureWriteZeroes uint64 = 1 << 14 // VIRTIO_BLK_F_WRITE_ZEROES
)

// Limits of the device.
const (
	// SectorSize is the unit of the driver's addresses, whatever the size of
	// a block (§5.2.4).
	SectorSize = 512
	// QueueSize is the number of descriptors of each queue.
	QueueSize = 256
	// MaxQueues is how many queues a disk may have.
	MaxQueues = 64
	// MaxSerial is the longest serial number in bytes (§5.2.6).
	MaxSerial = 20

	// segMax leaves room for header and status in a chain without indirect
	// descriptors.
	segMax = QueueSize - 2
	// maxSegments is how many segments a discard or write-zeroes request may
	// have. One to discard covers at most maxDiscardSectors, 1 GiB; one of
	// zeros, which may have to be written, maxZeroesSectors, 64 MiB.
	maxSegments       = 16
	maxDiscardSectors = 1 << 21
	maxZeroesSectors  = 1 << 17
)

// Config says what disk the guest gets.
type Config struct {
	// Path of a raw image file or a block device.
	Path string
	// ReadOnly disks may be shared by many machines, others by none.
	ReadOnly bool
	// Overlay is a file that gets all writes, while the image at Path is only
	// read and may be that of many disks; "" is none. It is made if it does not
	// exist, and otherwise must have been made for the image as it is. The
	// disk keeps the size that it has.
	Overlay string
	// Scratch is an overlay that is gone with the process, instead; nil is none.
	Scratch *Scratch `json:"-"`
	// Direct keeps the disk's data out of the page cache of the host.
	Direct bool
	// Inactive opens the image without its lock, and the overlay not at all,
	// because another process's guest has them still. The device may be used
	// after Activate.
	Inactive bool `json:"-"`
	// Interim is where the image is until Activate, which finds it at Path; "" is
	// Path. It is for an image that comes from another host.
	Interim string `json:"-"`
	// Serial is the serial number, at most MaxSerial bytes of ASCII.
	Serial string
	// Queues is how many queues there are, each served by a thread; 0 is 1.
	Queues int
	// Limit bounds the bytes read and written and the requests a second.
	Limit limit.Config
	// Warn is told about errors of the host, once for each kind, from any
	// goroutine. It may be nil.
	Warn func(error) `json:"-"`

	// engine is what the tests want for requests that would block, and
	// noInline makes those of all requests.
	engine   engine
	noInline bool
	// now is the time for the limits; nil is the clock.
	now func() time.Time
}

// engine is how requests that would block are carried out.
type engine int

const (
	engineBest engine = iota // the ring if the host has one
	enginePool
	engineRing
)

// Device is a disk. Its methods are for the transport, but for Resize, Save,
// Restore and Close.
type Device struct {
	config  Config
	image   *image
	overlay *overlay // nil if there is none
	limiter *limit.Limiter
	// services has one for each queue.
	services []*service

	// sectors is the capacity, writeback what the driver wants (§5.2.5).
	sectors   atomic.Uint64
	writeback atomic.Bool
	// log is nil unless the disk is being copied; see mirror.go.
	log atomic.Pointer[writeLog]
	// failed is set when a queue turns out to be broken: the others are not
	// served any more either.
	failed atomic.Bool
	// noNowait is set when the file system turns out not to know whether a
	// read would block.
	noNowait atomic.Bool

	mu     sync.Mutex
	driver *virtio.Driver // nil unless started
	// resized is set while there is a new size that no driver was told.
	resized bool
	warned  map[string]bool
}

// New opens and locks the image.
func New(c Config) (_ *Device, err error) {
	if c.Queues == 0 {
		c.Queues = 1
	}
	switch {
	case c.Queues < 0 || c.Queues > MaxQueues:
		return nil, fmt.Errorf("disk %s: %d queues, want 1 to %d", c.Path, c.Queues, MaxQueues)
	case c.ReadOnly && c.overlaid():
		return nil, fmt.Errorf("disk %s: it is read-only and has an overlay, which would stay empty: leave out one of them", c.Path)
	case c.Overlay != "" && c.Scratch != nil:
		return nil, fmt.Errorf("disk %s: it has the overlay %s and one that is not kept: leave out one of them", c.Path, c.Overlay)
	case len(c.Serial) > MaxSerial || !printable(c.Serial):
		return nil, fmt.Errorf("disk %s: serial number %q, want at most %d characters of ASCII", c.Path, c.Serial, MaxSerial)
	}
	d := &Device{config: c, warned: make(map[string]bool)}
	d.writeback.Store(true)
	if d.limiter, err = limit.New(c.Limit, c.now); err != nil {
		return nil, fmt.Errorf("disk %s: %w", c.Path, err)
	}
	if d.image, err = openImage(&c); err != nil {
		return nil, fmt.Errorf("disk %s: %w", c.Path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	size, err := d.image.size()
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", c.Path, err)
	}
	if err := refuseOverlay(d.image); err != nil {
		return nil, fmt.Errorf("disk %s: %w", c.Path, err)
	}
	d.sectors.Store(size / SectorSize)
	if c.overlaid() && !c.Inactive {
		if d.overlay, err = openOverlay(c, d.image, size); err != nil {
			return nil, fmt.Errorf("disk %s: %w", c.name(), err)
		}
	}
	for range c.Queues {
		s, err := newService(d)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", c.Path, err)
		}
		d.services = append(d.services, s)
	}
	return d, nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// name is what the disk is called in messages.
func (c *Config) name() string {
	switch {
	case c.Scratch != nil:
		return c.Path + " with an overlay in " + c.Scratch.dir
	case c.Overlay != "":
		return c.Path + " with overlay " + c.Overlay
	}
	return c.Path
}

// Close unlocks and closes the image of a stopped device. If there is an
// overlay that is kept, it makes what is in it durable.
func (d *Device) Close() error {
	var err error
	for _, s := range d.services {
		err = errors.Join(err, s.close())
	}
	if d.overlay != nil {
		err = errors.Join(err, d.overlay.close())
	}
	return errors.Join(err, d.image.close())
}

// Sync makes the writes durable that are complete. It may be called from any
// goroutine, until Close.
func (d *Device) Sync() error {
	sync := d.image.sync
	if d.overlay != nil {
		sync = d.overlay.sync
	}
	if errno := sync(); errno != 0 {
		return fmt.Errorf("sync disk %s: %w", d.config.name(), errno)
	}
	return nil
}

// Type is virtio.TypeBlock.
func (d *Device) Type() virtio.DeviceType { return virtio.TypeBlock }

// Features of the disk.
func (d *Device) Features() uint64 {
	f := FeatureSegMax | FeatureBlockSize | FeatureFlush | FeatureTopology | FeatureConfigWCE
	if d.config.ReadOnly {
		f |= FeatureReadOnly
	} else {
		f |= FeatureDiscard | FeatureWriteZeroes
	}
	if d.config.Queues > 1 {
		f |= FeatureMultiQueue
	}
	return f
}

// QueueSizes has an entry of QueueSize for each of Config.Queues.
func (d *Device) QueueSizes() []uint16 {
	sizes := make([]uint16, d.config.Queues)
	for i := range sizes {
		sizes[i] = QueueSize
	}
	return sizes
}

// Capacity is the size of the disk in bytes. It may be called from any
// goroutine.
func (d *Device) Capacity() uint64 { return d.sectors.Load() * SectorSize }

// Resize takes over the size that the file has now and tells the driver. It may
// be called from any goroutine, until Close. When it fails, as it does with an
// overlay, the size stays what it was.
func (d *Device) Resize() error {
	if d.overlay != nil {
		return fmt.Errorf("resize disk %s: it has an overlay and keeps the size of the image: copy it to an image of its own first", d.config.name())
	}
	size, err := d.image.size()
	if err != nil {
		return fmt.Errorf("resize disk %s: %w", d.config.Path, err)
	}
	if d.sectors.Swap(size/SectorSize) == size/SectorSize {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resized = true
	d.tellSize()
	return nil
}

// ChangeLimit changes what the driver may ask for. It may be called from any goroutine,
// until Close. An error changes nothing.
func (d *Device) ChangeLimit(c limit.Change) error {
	if err := c.Check(); err != nil {
		return fmt.Errorf("disk %s: %w", d.config.name(), err)
	}
	d.limiter.Change(c)
	for _, s := range d.services {
		s.timer.Set(0) // who waits tries again
	}
	return nil
}

// tellSize tells a driver that is there about a new size. d.mu is held.
func (d *Device) tellSize() {
	if d.driver != nil && d.resized {
		d.resized = false
		d.driver.ConfigChanged()
	}
}

// writethrough tells whether a write must be durable when it completes
// (§5.2.6.2): if the driver says so, or does not know of flushes.
func (d *Device) writethrough(features uint64) bool {
	if d.config.Scratch != nil {
		return false // nothing outlives the process
	}
	if features&FeatureConfigWCE != 0 {
		return !d.writeback.Load()
	}
	return features&FeatureFlush == 0
}

// warn reports trouble on the host once for each kind.
func (d *Device) warn(what string, errno unix.Errno) {
	kind := what + errno.Error()
	d.mu.Lock()
	known := d.warned[kind]
	d.warned[kind] = true
	d.mu.Unlock()
	if !known && d.config.Warn != nil {
		d.config.Warn(fmt.Errorf("disk %s: %s: %w", d.config.name(), what, errno))
	}
}
