package blk

import (
	"encoding/binary"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"golang.org/x/sys/unix"
)

// Types of requests (§5.2.6).
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13
)

// status is the last byte that the device writes to a request (§5.2.6).
type status uint8

const (
	statusOK          status = 0
	statusIOError     status = 1
	statusUnsupported status = 2
)

// headerSize is that of the header, which may be split over descriptors in any
// way (§2.7.4.1); statusSize is that of the status behind the data.
const (
	headerSize = 16
	statusSize = 1
)

// work is what has to be done for a request.
type work uint8

const (
	workNone work = iota // the status is known
	workRead
	workWrite
	workFlush
	workDiscard
	workZeroes
)

// String is for messages about errors of the host.
func (w work) String() string {
	return [...]string{"answer", "read", "write", "flush", "discard", "write zeroes"}[w]
}

// request is one request of the driver, from Pop to Push. There is one for each
// descriptor of the queue, used again and again.
type request struct {
	chain virtio.Chain
	// index is its place among the requests of the queue.
	index uint32

	work work
	// begun is when the device took it from the queue.
	begun time.Time
	// status is the outcome when there is no work, or no more.
	status status
	// durable is set if the request must be on the disk when it completes.
	durable bool

	// length is how many bytes are to be read or written, and done how many
	// have been. What is left goes from offset of the image to vectors or
	// back, which live in store.
	length, done uint32
	offset       uint64
	vectors      []unix.Iovec
	store        []unix.Iovec
	// spans are the ranges of a discard or write-zeroes request.
	spans []span
	// extent is how much of the image the work is about in all, in bytes.
	extent uint64

	image *image
	// overlay is nil if the disk has none.
	overlay *overlay
}

// parse reads the header of a new chain and sets the request up. The chain has
// room for the status.
func (r *request) parse(d *Device, features uint64) {
	r.work, r.status, r.durable = workNone, statusIOError, false
	r.length, r.done, r.vectors, r.extent = 0, 0, nil, 0
	var header [headerSize]byte
	if r.chain.CopyOut(0, header[:]) < headerSize {
		return
	}
	kind := binary.LittleEndian.Uint32(header[:])
	sector := binary.LittleEndian.Uint64(header[8:])
	out, in := r.chain.ReadLen-headerSize, r.chain.WriteLen-statusSize
	switch kind {
	case typeIn:
		if out == 0 {
			r.transfer(d, workRead, sector, in)
		}
	case typeOut:
		if in == 0 && !d.config.ReadOnly {
			r.transfer(d, workWrite, sector, out)
			r.durable = d.writethrough(features)
		}
	case typeFlush:
		r.work = workFlush
	case typeGetID:
		r.identify(d.config.Serial)
	case typeDiscard:
		r.ranges(d, workDiscard, features&FeatureDiscard != 0)
		r.durable = d.writethrough(features)
	case typeWriteZeroes:
		r.ranges(d, workZeroes, features&FeatureWriteZeroes != 0)
		r.durable = d.writethrough(features)
	default:
		r.status = statusUnsupported
	}
}

// transfer sets up a read or a write of n bytes at a sector.
func (r *request) transfer(d *Device, w work, sector uint64, n uint32) {
	if n%SectorSize != 0 || !inside(d.sectors.Load(), sector, uint64(n/SectorSize)) {
		return
	}
	if n == 0 {
		r.status = statusOK
		return
	}
	if w == workRead {
		r.store = appendVectors(r.store[:0], r.chain.Write, 0, n)
	} else {
		r.store = appendVectors(r.store[:0], r.chain.Read, headerSize, n)
	}
	r.work, r.length, r.offset, r.vectors = w, n, sector*SectorSize, r.store
	r.extent = uint64(n)
}

// charge is what the request counts towards the limit of bytes.
func (r *request) charge() uint64 {
	if r.work == workDiscard {
		return 0
	}
	return r.extent
}

// inside tells whether n sectors from the first one lie on a disk.
func inside(capacity, first, n uint64) bool { return first <= capacity && n <= capacity-first }

// identify answers with the serial number, padded with zeros (§5.2.6).
func (r *request) identify(serial string) {
	var id [MaxSerial]byte
	copy(id[:], serial)
	n := min(r.chain.WriteLen-statusSize, MaxSerial)
	r.chain.CopyIn(0, id[:n])
	r.done, r.status = n, statusOK
}

// finish writes the status and returns how many bytes of the writable part were
// written.
func (r *request) finish(d virtio.Driver) (written uint32) {
	if r.work == workRead {
		// After an error nobody knows how far the kernel got.
		r.chain.MarkWritten(r.length)
	}
	last := &r.chain.Write[len(r.chain.Write)-1]
	at := len(last.Data) - statusSize
	last.Data[at] = byte(r.status)
	d.Mem.MarkDirty(last.GPA+gpa(at), statusSize)
	if r.work == workWrite {
		return statusSize
	}
	return r.done + statusSize
}
