package blk

import (
	"encoding/binary"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

// The device configuration space (§5.2.4): offsets in bytes.
const (
	configCapacity          = 0  // le64, sectors
	configSegMax            = 12 // le32
	configBlockSize         = 20 // le32
	configPhysicalExponent  = 24 // u8: logical blocks in a physical one, log2
	configMinIO             = 26 // le16, logical blocks
	configOptIO             = 28 // le32, logical blocks
	configWriteback         = 32 // u8
	configQueues            = 34 // le16
	configDiscardSectors    = 36 // le32
	configDiscardSegments   = 40 // le32
	configDiscardAlign      = 44 // le32, sectors
	configZeroesSectors     = 48 // le32
	configZeroesSegments    = 52 // le32
	configZeroesMayUnmap    = 56 // u8
	configSize              = 60
	discardAlignmentSectors = physicalBlock / SectorSize
)

// ReadConfig reads the configuration space.
func (d *Device) ReadConfig(offset uint64, p []byte) {
	var c [configSize]byte
	le := binary.LittleEndian
	le.PutUint64(c[configCapacity:], d.sectors.Load())
	le.PutUint32(c[configSegMax:], segMax)
	le.PutUint32(c[configBlockSize:], d.image.block.logical)
	c[configPhysicalExponent] = d.image.block.exponent()
	le.PutUint16(c[configMinIO:], d.image.block.minIO())
	le.PutUint32(c[configOptIO:], d.image.block.optimal/d.image.block.logical)
	if d.writeback.Load() {
		c[configWriteback] = 1
	}
	le.PutUint16(c[configQueues:], uint16(d.config.Queues))
	if !d.config.ReadOnly {
		le.PutUint32(c[configDiscardSectors:], maxDiscardSectors)
		le.PutUint32(c[configDiscardSegments:], maxSegments)
		le.PutUint32(c[configDiscardAlign:], discardAlignmentSectors)
		le.PutUint32(c[configZeroesSectors:], maxZeroesSectors)
		le.PutUint32(c[configZeroesSegments:], maxSegments)
		c[configZeroesMayUnmap] = 1
	}
	virtio.ReadConfig(c[:], offset, p)
}

// WriteConfig changes the cache mode (§5.2.5): nothing else can be written.
func (d *Device) WriteConfig(offset uint64, p []byte) {
	if offset == configWriteback && len(p) == 1 {
		d.writeback.Store(p[0] != 0)
	}
}
