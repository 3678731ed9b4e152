package blk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The format of an overlay, version 1; numbers are little-endian:
//
//	0        header: what disk the overlay belongs to, with a checksum
//	4096     session: the boot of the host in which the overlay was last open
//	8192     written: a bit for each cluster that is in the overlay
//	...      durable: a bit for each cluster whose contents are on stable storage
//	data     cluster n at data + n*64 KiB, data a multiple of 64 KiB
//
// Each bitmap is rounded up to 4096 bytes. The file is sparse, and as long as if
// all clusters were in it: there is no table to look up, or to be torn.
//
// Bits are only ever set, and no bit depends on another one. One is set in
// "written" when the cluster has its contents, all 64 KiB of it. As long as the
// host has not gone down since, its page cache has both, whatever happened to
// the process, and "written" is the truth. After a crash of the host it is not:
// the file system may have kept the bit and not the contents. So a flush makes
// the contents durable first and sets the bits in "durable" then, and that is
// the truth in a session of another boot. A bitmap of which a crash has kept
// some sectors and not others lacks clusters of a flush that had not ended.
const (
	overlayMagic   = "godwitOV"
	overlayVersion = 1
	// clusterSize is the unit in which the overlay hides the base, in bytes.
	clusterSize = 64 << 10
	// overlayBlock is what the file is laid out in. Header, session and parts
	// of the bitmaps are written a block, or less, at a time.
	overlayBlock = 4096
	// maxOverlaid bounds the size of a disk with an overlay, and so that of
	// the bitmaps: 128 MiB each.
	maxOverlaid = 64 << 40
)

// Places of the fields of the header, in bytes.
const (
	headerMagic    = 0                // 8 bytes
	headerVersion  = 8                // u32
	headerCluster  = 12               // u32: clusterSize
	headerDisk     = 16               // u64: size of the disk in bytes
	headerKind     = 24               // u32: 1 if the base is a block device, else 0
	headerPathLen  = 28               // u32: bytes of headerPath
	headerInode    = 32               // u64, of the base; 0 for a block device
	headerModified = 40               // i64: when that was written last, ns since 1970; 0 for a block device
	headerPath     = 48               // the base's when the overlay was made; zeros up to the checksum
	headerChecksum = overlayBlock - 4 // CRC-32C of what is before

	maxBasePath = headerChecksum - headerPath
)

// layout is where the parts of an overlay are, in bytes.
type layout struct {
	clusters uint64
	// bitmap is the size of each bitmap.
	bitmap                       uint64
	writtenAt, durableAt, dataAt uint64
}

const sessionAt = overlayBlock

// layoutFor is the layout for a disk of the given size, at most maxOverlaid.
func layoutFor(size uint64) layout {
	l := layout{clusters: roundUp(size, clusterSize) / clusterSize}
	l.bitmap = roundUp((l.clusters+7)/8, overlayBlock)
	l.writtenAt = sessionAt + overlayBlock
	l.durableAt = l.writtenAt + l.bitmap
	l.dataAt = roundUp(l.durableAt+l.bitmap, clusterSize)
	return l
}

// end is the size of the file.
func (l layout) end() uint64 { return l.dataAt + l.clusters*clusterSize }

func roundUp(n, unit uint64) uint64 { return (n + unit - 1) / unit * unit }

// baseID tells a base from another one, and from itself with other contents.
type baseID struct {
	// size is that of the disk in bytes.
	size uint64
	// path is absolute. It names the base in messages; it identifies block
	// devices only, which have nothing better.
	path     string
	device   bool
	inode    uint64
	modified int64
}

// identify says what an open base is.
func identify(base *image, size uint64) (baseID, error) {
	path, err := filepath.Abs(base.path)
	if err != nil {
		return baseID{}, err
	}
	if len(path) > maxBasePath {
		return baseID{}, fmt.Errorf("the path of the base has %d bytes, an overlay can note %d: use a shorter one", len(path), maxBasePath)
	}
	id := baseID{size: size, path: path, device: base.device}
	if base.device {
		return id, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(base.buffered, &st); err != nil {
		return baseID{}, fmt.Errorf("look at the base: %w", err)
	}
	id.inode, id.modified = st.Ino, st.Mtim.Nano()
	return id, nil
}

// same tells whether two identities are of one base with the same contents.
func (b baseID) same(c baseID) bool {
	if !b.device || !c.device {
		b.path, c.path = "", "" // it may have been moved
	}
	return b == c
}

// String is for messages.
func (b baseID) String() string {
	if b.device {
		return fmt.Sprintf("%s (a block device, %d bytes)", b.path, b.size)
	}
	return fmt.Sprintf("%s (%d bytes, inode %d, last written %s)", b.path, b.size, b.inode, time.Unix(0, b.modified).UTC().Format(time.RFC3339Nano))
}

// castagnoli is the table of CRC-32C, which few starts need.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

// encode makes the header of an overlay on the base.
func (b baseID) encode() []byte {
	p := make([]byte, overlayBlock)
	le := binary.LittleEndian
	copy(p[headerMagic:], overlayMagic)
	le.PutUint32(p[headerVersion:], overlayVersion)
	le.PutUint32(p[headerCluster:], clusterSize)
	le.PutUint64(p[headerDisk:], b.size)
	if b.device {
		le.PutUint32(p[headerKind:], 1)
	}
	le.PutUint32(p[headerPathLen:], uint32(len(b.path)))
	le.PutUint64(p[headerInode:], b.inode)
	le.PutUint64(p[headerModified:], uint64(b.modified))
	copy(p[headerPath:headerChecksum], b.path)
	le.PutUint32(p[headerChecksum:], crc32.Checksum(p[:headerChecksum], castagnoli()))
	return p
}

var (
	errNoOverlay = errors.New("the file is no overlay: name another one, which is created if it does not exist")
	errDamaged   = errors.New("the overlay is damaged: without a copy of it, delete it and start from the base again")
)

// isOverlay tells whether p, the first block of a file, says that it is an
// overlay.
func isOverlay(p []byte) bool { return bytes.HasPrefix(p, []byte(overlayMagic)) }

// decodeHeader reads a header, which is overlayBlock bytes.
func decodeHeader(p []byte) (baseID, error) {
	le := binary.LittleEndian
	if !isOverlay(p) {
		return baseID{}, errNoOverlay
	}
	if v := le.Uint32(p[headerVersion:]); v != overlayVersion {
		return baseID{}, fmt.Errorf("the overlay has version %d, this program knows %d: use the program that made it, or a later one", v, overlayVersion)
	}
	if le.Uint32(p[headerChecksum:]) != crc32.Checksum(p[:headerChecksum], castagnoli()) {
		return baseID{}, fmt.Errorf("%w (the checksum of its header is wrong)", errDamaged)
	}
	b := baseID{size: le.Uint64(p[headerDisk:]), inode: le.Uint64(p[headerInode:]), modified: int64(le.Uint64(p[headerModified:]))}
	kind, n := le.Uint32(p[headerKind:]), le.Uint32(p[headerPathLen:])
	b.device = kind == 1
	if n <= maxBasePath {
		b.path = string(p[headerPath : headerPath+n])
	}
	// What encode does not make was not made by this version.
	if b.size == 0 || b.size%SectorSize != 0 || b.size > maxOverlaid || !bytes.Equal(p, b.encode()) {
		return baseID{}, fmt.Errorf("%w (its header makes no sense)", errDamaged)
	}
	return b, nil
}

// bootID names the boot of the host, as in the session of an overlay. A zero one
// is unknown, and equal to none.
type bootID [36]byte

// currentBoot is that of now.
func currentBoot() (id bootID) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(text) < len(id) {
		return bootID{}
	}
	copy(id[:], text)
	return id
}
