// Package balloon is the virtio memory balloon (virtio 1.2 §5.5): the host asks
// the guest to give up memory, or to take it again, and each page that the guest
// gives up goes back to the host at once. The guest may also report pages that
// are free for the moment (free page reporting), and answers questions about its
// memory (statistics).
package balloon

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/memory"
)

// Feature bits (§5.5.3).
const (
	featureMustTellHost uint64 = 1 << 0 // VIRTIO_BALLOON_F_MUST_TELL_HOST
	featureStats        uint64 = 1 << 1 // VIRTIO_BALLOON_F_STATS_VQ
	featureDeflateOnOOM uint64 = 1 << 2 // VIRTIO_BALLOON_F_DEFLATE_ON_OOM
	featurePagePoison   uint64 = 1 << 4 // VIRTIO_BALLOON_F_PAGE_POISON
	featureReporting    uint64 = 1 << 5 // VIRTIO_BALLOON_F_PAGE_REPORTING
)

// The device configuration space (§5.5.4): offsets of its little-endian 32-bit
// fields, and its size. The field between actual and poison_val is for a feature
// that is not offered.
const (
	configNumPages = 0
	configActual   = 4
	configPoison   = 12
	configSize     = 16
)

// PageSize is the unit of the balloon in bytes, whatever pages the guest has
// (§5.5.6).
const PageSize = 4096

// Config says what a balloon does.
type Config struct {
	// Mem is the memory of the guest.
	Mem *memory.Guest `json:"-"`
	// Target is how many bytes the guest is asked to give up at first.
	Target uint64
	// DeflateOnOOM lets the guest take memory back before it kills a process
	// for want of some.
	DeflateOnOOM bool
	// FreePageReporting has the guest report memory that is free for the
	// moment. It has no effect for a guest with huge pages: such a guest
	// could not know whether the host's pool still has the page when it
	// takes it again.
	FreePageReporting bool
	// StatsInterval is how often the guest is asked about its memory; 0 is
	// never.
	StatsInterval time.Duration
	// Warn is told about an error of the host, once for each kind; nil
	// ignores it. It may be called from any goroutine.
	Warn func(error) `json:"-"`
}

// Device is a balloon. Its methods may be called from any goroutine, but for
// those of virtio.Device, which are the transport's, and for Save, Restore and
// Close, for which the device is stopped.
type Device struct {
	config Config
	warned sync.Once

	mu       sync.Mutex
	space    [configSize]byte // the device configuration space
	interval time.Duration
	given    pageSet
	reported uint64 // bytes
	guest    guestStats
	updated  time.Time // when guest was
	service  *service  // nil unless started
}

var _ virtio.Device = (*Device)(nil)

// New makes a balloon.
func New(c Config) (*Device, error) {
	if c.Mem == nil {
		return nil, errors.New("balloon: the memory of the guest is missing")
	}
	d := &Device{config: c, given: newPageSet(c.Mem)}
	if err := d.SetTarget(c.Target); err != nil {
		return nil, err
	}
	if err := d.SetStatsInterval(c.StatsInterval); err != nil {
		return nil, err
	}
	return d, nil
}

// Type of the device.
func (d *Device) Type() virtio.DeviceType { return virtio.TypeBalloon }

// Features that are offered.
func (d *Device) Features() uint64 {
	f := featureStats | featurePagePoison
	if d.config.DeflateOnOOM {
		f |= featureDeflateOnOOM
	}
	switch {
	case d.hugePages():
		// A huge page goes back to the host when the last of its pages is
		// given up, which is later than the guest was told that the others
		// are; and it must be there again before the guest uses it.
		f |= featureMustTellHost
	case d.config.FreePageReporting:
		f |= featureReporting
	}
	return f
}

func (d *Device) hugePages() bool { return d.config.Mem.HostPageSize() > PageSize }

// ReadConfig reads the configuration space.
func (d *Device) ReadConfig(offset uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	virtio.ReadConfig(d.space[:], offset, p)
}

// WriteConfig takes what the driver may write: how many pages it has given up,
// and what it fills free pages with.
func (d *Device) WriteConfig(offset uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, b := range p {
		// The sum cannot overflow where it is used.
		at := offset + uint64(i)
		if offset < configSize && (inField(at, configActual) || inField(at, configPoison)) {
			d.space[at] = b
		}
	}
}

func inField(at, field uint64) bool { return at >= field && at < field+4 }

// field reads a field of the configuration space. The lock is held.
func (d *Device) field(at int) uint32 { return binary.LittleEndian.Uint32(d.space[at:]) }

// setField writes a field of the configuration space. The lock is held.
func (d *Device) setField(at int, x uint32) { binary.LittleEndian.PutUint32(d.space[at:], x) }

// SetTarget asks the guest to give up so many bytes, rounded down to whole
// pages, all in all. It returns at once; Stats tells how far the guest has come.
// A guest that has less to spare gives up less.
func (d *Device) SetTarget(bytes uint64) error {
	if size := d.config.Mem.Size(); bytes > size {
		return fmt.Errorf("balloon of %d bytes in a guest of %d: a guest cannot give up more than it has", bytes, size)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setField(configNumPages, uint32(bytes/PageSize))
	if d.service != nil {
		// With the lock, which Stop waits for.
		d.service.driver.ConfigChanged()
	}
	return nil
}

// Config is what the device was made with.
func (d *Device) Config() Config { return d.config }

// Target is how many bytes the guest is asked to give up.
func (d *Device) Target() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return uint64(d.field(configNumPages)) * PageSize
}

// Ballooned has a bit for each page that the guest has given up, in the layout
// of the dirty bitmap: what is in these pages does not matter to anybody. A page
// that the guest takes back meanwhile becomes dirty when it is used.
func (d *Device) Ballooned() []uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.given.copyBits()
}

// Reset forgets what the driver has said. The target remains.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setField(configActual, 0)
	d.setField(configPoison, 0)
	d.guest, d.updated = guestStats{}, time.Time{}
	// What comes next in the guest knows nothing about a balloon.
	if d.hugePages() && d.given.count > 0 {
		for _, r := range d.config.Mem.Ranges() {
			if err := d.config.Mem.Populate(r.Start, r.Size); err != nil {
				d.warn(err)
			}
		}
	}
	d.given.clearAll()
}

// Close frees nothing: a stopped balloon holds no resources of the host.
func (d *Device) Close() error { return nil }

// warn tells the operator about the first error of the host.
func (d *Device) warn(err error) {
	if d.config.Warn != nil {
		d.warned.Do(func() { d.config.Warn(fmt.Errorf("balloon: %w", err)) })
	}
}
