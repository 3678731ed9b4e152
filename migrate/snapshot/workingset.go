package snapshot

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

// WorkingSetFile says what memory the guest used when it was restored before. It is no
// part of the snapshot: it comes later, may be replaced, and may be removed.
const WorkingSetFile = "workingset"

// MaxWorkingSet is how many runs of pages a working set has at most.
const MaxWorkingSet = 1 << 16

// The file is a header,
//
//	 0  [8]byte  "godwitWS"
//	 8  uint16   major version
//	10  uint16   minor version
//	12  uint32   number of entries, at most MaxWorkingSet
//	16  [16]byte id of the snapshot
//	32  uint64   size of the memory file
//	40  [16]byte zero
//	56  uint32   checksum of the entries
//	60  uint32   checksum of the header with zero here
//
// and an entry for each run of pages, in rising order:
//
//	0  uint64   offset in the memory file, plus 1 for pages that were written
//	8  uint64   length
const (
	workingSetMagic  = "godwitWS"
	workingSetEntry  = 16
	workingSetCount  = 12
	workingSetMemory = 32
	workingSetZero   = 40
	workingSetSum    = 56
	workingSetWrote  = 1
)

// EncodeWorkingSet is the content of WorkingSetFile in the snapshot with the manifest m.
// Where there are more runs than MaxWorkingSet, pages between them are added.
func EncodeWorkingSet(m *Manifest, runs []memory.Touched) ([]byte, error) {
	snapshot, err := parseID(m.ID)
	if err != nil {
		return nil, err
	}
	for gap := uint64(PageSize); len(runs) > MaxWorkingSet; gap *= 2 {
		runs = bridge(runs, gap)
	}
	p := make([]byte, headerSize+len(runs)*workingSetEntry)
	h, entries := p[:headerSize], p[headerSize:]
	for i, r := range runs {
		at := r.Offset
		if r.Written {
			at |= workingSetWrote
		}
		binary.LittleEndian.PutUint64(entries[i*workingSetEntry:], at)
		binary.LittleEndian.PutUint64(entries[i*workingSetEntry+8:], r.Length)
	}
	putHeader(h, workingSetMagic, snapshot)
	binary.LittleEndian.PutUint32(h[workingSetCount:], uint32(len(runs)))
	binary.LittleEndian.PutUint64(h[workingSetMemory:], m.Memory.Size)
	binary.LittleEndian.PutUint32(h[workingSetSum:], checksum(entries))
	sealHeader(h)
	_, err = decodeWorkingSet(p, m)
	return p, err
}

// bridge joins runs with at most gap bytes between them. Where only one of two was
// written, both are only read ahead: a page that is copied for nothing costs memory.
func bridge(runs []memory.Touched, gap uint64) []memory.Touched {
	var joined []memory.Touched
	for _, r := range runs {
		if last := len(joined) - 1; last >= 0 && r.Offset-joined[last].Offset-joined[last].Length <= gap {
			joined[last].Length = r.Offset + r.Length - joined[last].Offset
			joined[last].Written = joined[last].Written && r.Written
			continue
		}
		joined = append(joined, r)
	}
	return joined
}

// WorkingSet is what memory the guest used when it was restored before, in rising order.
// The error wraps fs.ErrNotExist if nobody has noted that. After any error the snapshot
// is as good as without.
func (s *Snapshot) WorkingSet() ([]memory.Touched, error) {
	d, err := os.OpenFile(s.dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	p, err := readSmall(d, WorkingSetFile, headerSize+MaxWorkingSet*workingSetEntry)
	if err != nil {
		return nil, err
	}
	runs, err := decodeWorkingSet(p, s.manifest)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", WorkingSetFile, err)
	}
	return runs, nil
}

func decodeWorkingSet(p []byte, m *Manifest) ([]memory.Touched, error) {
	if err := checkHeader(p, workingSetMagic); err != nil {
		return nil, err
	}
	h, entries := p[:headerSize], p[headerSize:]
	if err := checkSeal(h); err != nil {
		return nil, err
	}
	if found := id(h[headerID:]).String(); found != m.ID {
		return nil, fmt.Errorf("%w: it belongs to snapshot %s, not to %s", ErrDamaged, found, m.ID)
	}
	if size := binary.LittleEndian.Uint64(h[workingSetMemory:]); size != m.Memory.Size {
		return nil, fmt.Errorf("%w: size of the memory is %d, want %d", ErrDamaged, size, m.Memory.Size)
	}
	n := binary.LittleEndian.Uint32(h[workingSetCount:])
	if n > MaxWorkingSet || len(entries) != int(n)*workingSetEntry || !zero(h[workingSetZero:workingSetSum]) {
		return nil, fmt.Errorf("%w: %d bytes for %d entries", ErrDamaged, len(p), n)
	}
	if want, got := binary.LittleEndian.Uint32(h[workingSetSum:]), checksum(entries); got != want {
		return nil, fmt.Errorf("%w: checksum of the entries is %#08x, want %#08x", ErrDamaged, got, want)
	}
	runs := make([]memory.Touched, n)
	var end uint64
	for i := range runs {
		at := binary.LittleEndian.Uint64(entries[i*workingSetEntry:])
		length := binary.LittleEndian.Uint64(entries[i*workingSetEntry+8:])
		offset := at &^ workingSetWrote
		if (offset|length)%PageSize != 0 || length == 0 || offset < end || offset > m.Memory.Size || length > m.Memory.Size-offset {
			return nil, fmt.Errorf("%w: entry %d is %d bytes at %#x", ErrDamaged, i, length, at)
		}
		end = offset + length
		runs[i] = memory.Touched{Span: memory.Span{Offset: offset, Length: length}, Written: at&workingSetWrote != 0}
	}
	return runs, nil
}
