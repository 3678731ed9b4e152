package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"sync"

	"github.com/godwit-vmm/godwit/memory"
)

// The files of a snapshot.
const (
	ManifestFile = "manifest.json"
	StateFile    = "state"
	MemoryFile   = "memory"
	SumsFile     = "memory.sums"
	PagesFile    = "memory.pages"
)

// Limits of the format. What is beyond them is neither written nor read.
const (
	MaxSections    = 64
	MaxSectionSize = 64 << 20
	MaxStateSize   = 256 << 20
	MaxNameLength  = 48
	MaxManifest    = 1 << 20
	MaxRanges      = 64
	MaxChain       = 64
)

// PageSize is the unit of memory in a snapshot, in bytes.
const PageSize = memory.PageSize

// ChunkSize is how many bytes of memory have one checksum.
const ChunkSize = 256 << 10

// Version of the format that this package writes.
var current = Version{Major: 1, Minor: 0}

var (
	// ErrVersion is wrapped by the errors about a snapshot of a version that
	// this package does not read.
	ErrVersion = errors.New("snapshot of another version")
	// ErrDamaged is wrapped by the errors about files that are not as they
	// were written.
	ErrDamaged = errors.New("snapshot is damaged")
)

// Version of the format; see the package's comment for the rule.
type Version struct{ Major, Minor uint16 }

// CurrentVersion is the version of the snapshots that this package writes.
func CurrentVersion() Version { return current }

// String is MAJOR.MINOR.
func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// MarshalText is how a version stands in the manifest: "1.0".
func (v Version) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (v *Version) UnmarshalText(text []byte) error {
	major, minor, found := strings.Cut(string(text), ".")
	a, errA := strconv.ParseUint(major, 10, 16)
	b, errB := strconv.ParseUint(minor, 10, 16)
	if !found || errA != nil || errB != nil {
		return fmt.Errorf("format version %.20q: want MAJOR.MINOR", text)
	}
	*v = Version{uint16(a), uint16(b)}
	return nil
}

// check refuses versions that this package does not read.
func (v Version) check() error {
	if v.Major == current.Major && v.Minor <= current.Minor {
		return nil
	}
	return fmt.Errorf("%w: it has format %v, this godwit reads %d.0 to %v: use the godwit that wrote it, or a newer one",
		ErrVersion, v, current.Major, current)
}

// headerSize is the size of the headers of all binary files.
const headerSize = 64

// headerCRC is where a header's own checksum lies, headerVersion the version and
// headerID the id.
const (
	headerVersion = 8
	headerID      = 16
	headerCRC     = 60
)

// id names the moment of a guest that a snapshot holds.
type id [16]byte

// castagnoli is the table of CRC-32C. Most commands do not need it, and it takes more
// than a tenth of a millisecond to make.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

// checksum is the CRC-32C of all parts, one after the other.
func checksum(parts ...[]byte) uint32 {
	var crc uint32
	for _, p := range parts {
		crc = crc32.Update(crc, castagnoli(), p)
	}
	return crc
}

// plainTable is a table of CRC-32C that is made in microseconds. With it package crc32
// does not use the processor's own instruction.
var plainTable = sync.OnceValue(func() *crc32.Table {
	t := new(crc32.Table)
	for i := range t {
		crc := uint32(i)
		for range 8 {
			crc = crc>>1 ^ crc32.Castagnoli&-(crc&1)
		}
		t[i] = crc
	}
	return t
})

// checksumOnce is checksum for the few parts that are read to restore a guest, which is
// over before castagnoli would be of use. A state that is large is worth its time.
func checksumOnce(parts ...[]byte) uint32 {
	const large = 64 << 10
	var crc uint32
	for _, p := range parts {
		table := plainTable
		if len(p) > large {
			table = castagnoli
		}
		crc = crc32.Update(crc, table(), p)
	}
	return crc
}

// putHeader fills in what all headers have in common but for the checksum.
func putHeader(h []byte, magic string, snapshot id) {
	copy(h, magic)
	binary.LittleEndian.PutUint16(h[headerVersion:], current.Major)
	binary.LittleEndian.PutUint16(h[headerVersion+2:], current.Minor)
	copy(h[headerID:], snapshot[:])
}

// checkHeader looks at the magic and the version, which come before anything
// else: another version may have its checksum elsewhere.
func checkHeader(h []byte, magic string) error {
	if len(h) < headerSize {
		return fmt.Errorf("%w: %d bytes, less than its header", ErrDamaged, len(h))
	}
	if string(h[:len(magic)]) != magic {
		return fmt.Errorf("%w: it begins with %.8q, want %q: it is not such a file", ErrDamaged, h[:len(magic)], magic)
	}
	return Version{
		Major: binary.LittleEndian.Uint16(h[headerVersion:]),
		Minor: binary.LittleEndian.Uint16(h[headerVersion+2:]),
	}.check()
}

// sealHeader writes the checksum of a header and of the parts that follow it.
func sealHeader(h []byte, parts ...[]byte) {
	binary.LittleEndian.PutUint32(h[headerCRC:], headerSum(h, parts...))
}

// checkSeal compares what sealHeader wrote.
func checkSeal(h []byte, parts ...[]byte) error {
	if want, got := binary.LittleEndian.Uint32(h[headerCRC:]), headerSum(h, parts...); got != want {
		return fmt.Errorf("%w: checksum of the header is %#08x, want %#08x", ErrDamaged, got, want)
	}
	return nil
}

func headerSum(h []byte, parts ...[]byte) uint32 {
	var none [4]byte
	return checksumOnce(append([][]byte{h[:headerCRC], none[:]}, parts...)...)
}

// zero tells whether p has only zero bytes.
func zero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
