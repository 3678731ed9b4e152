// Package snapshot is the format of a snapshot on disk: a directory with the
// state and the memory of one paused guest. It is pure file work and knows
// nothing of KVM, devices or vCPUs; what is in a section of the state is the
// caller's.
//
// # Files
//
//	manifest.json   what this is, for people and tools (type Manifest)
//	state           named sections, each with length and checksum
//	memory          guest RAM, raw and sparse
//	memory.sums     a checksum for each 256 KiB of memory
//	memory.pages    only in a diff: which pages the diff contains
//
// A snapshot may hold further files (Writer.CreateFile), such as copies of disks,
// which have no checksums here; readers ignore those that they do not know.
//
// The memory file holds the ranges of RAM one after the other in rising order of
// address, so the offset of a page is that in the guest's memfd. Zero pages, and
// pages that were never written, are holes. A diff contains the pages that
// changed since its base; a page that it contains and that is a hole is a zero
// page, all others come from the base.
//
// All numbers are little-endian, all checksums CRC-32C (RFC 3720 §12.1), which
// find damage and not malice. The state begins with
//
//	 0  [8]byte  "godwitST"
//	 8  uint16   major version
//	10  uint16   minor version
//	12  uint32   number of sections, at most 64
//	16  [16]byte id of the snapshot
//	32  uint32   size of manifest.json
//	36  uint32   checksum of manifest.json
//	40  uint64   size of this file
//	48  [12]byte zero
//	60  uint32   checksum of the header with zero here, and of the table
//
// followed by the table, an entry for each section,
//
//	 0  [48]byte name, padded with zeros
//	48  uint64   size, at most 64 MiB
//	56  uint32   zero
//	60  uint32   checksum
//
// and the sections one after the other in the order of the table. The files
// memory.sums and memory.pages begin with
//
//	 0  [8]byte  "godwitSU" or "godwitPG"
//	 8  uint16   major version
//	10  uint16   minor version
//	12  uint32   bytes of memory that an entry stands for
//	16  [16]byte id of the snapshot
//	32  uint64   size of the memory file
//	40  uint64   number of entries
//	48  [8]byte  zero
//	56  uint32   checksum of the entries
//	60  uint32   checksum of the header with zero here
//
// followed by the entries: the checksum of each chunk, a uint32, with holes read
// as zeros; or bits in the order of the KVM dirty log, in whole 64-bit words, for
// each page.
//
// # Compatibility
//
// The version is major.minor and the same in all files of a snapshot. A godwit
// reads all snapshots of its own major version with its own or a lower minor
// version. It refuses a higher minor version and any other major version with an
// error that names both (ErrVersion). A change that older readers would
// misunderstand raises the minor version if new readers still read older
// snapshots, else the major one. Fields that a reader does not know are ignored
// in manifest.json, so adding one that may be ignored changes no version. A
// snapshot of each released version stays in testdata.
//
// # Whole or not there
//
// A Writer works in a hidden directory beside the one that it is to make, and
// renames it when every file is on the disk. A writer that was killed leaves the
// hidden directory; the next Create of the same name, and CleanStale, remove it.
// A lock on the memory file keeps one that is in use from being taken for one
// that was left.
//
// Files of a snapshot never change after that: guests that were restored from it
// have the memory file mapped.
package snapshot
