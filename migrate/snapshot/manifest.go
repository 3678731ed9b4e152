package snapshot

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/statejson"
)

// Kind says whether a snapshot stands for itself.
type Kind string

// The kinds of snapshot.
const (
	// Full has all of the memory.
	Full Kind = "full"
	// Diff has the pages that changed since its base.
	Diff Kind = "diff"
)

// Limits of the lists and strings of a manifest.
const (
	maxList   = 4096
	maxString = 4096
)

// Manifest says what a snapshot is. The caller of Writer.Commit fills in what the
// Writer does not know; the fields above Created are the Writer's.
type Manifest struct {
	// Format is the version of all files of the snapshot.
	Format Version `json:"format"`
	// ID names the moment of the guest: 32 hexadecimal digits, random. A
	// merged snapshot has the ID of the newest one that went into it.
	ID   string `json:"id"`
	Kind Kind   `json:"kind"`
	// Base is what a diff builds upon.
	Base   *Base        `json:"base,omitempty"`
	Memory MemoryLayout `json:"memory"`

	Created time.Time `json:"created"`
	// Godwit is the version of the program.
	Godwit string `json:"godwit"`
	// Name of the guest.
	Name string `json:"name,omitempty"`
	CPUs int    `json:"cpus,omitempty"`
	// CPUFeatures are the names of the features that the guest has seen, so
	// that a host without them can refuse it.
	CPUFeatures []string `json:"cpu_features,omitempty"`
	Devices     []Device `json:"devices,omitempty"`
	Disks       []Disk   `json:"disks,omitempty"`
}

// Base names the snapshot that a diff builds upon.
type Base struct {
	// Path of its directory. A relative path starts at the directory that
	// the diff's directory lies in.
	Path string `json:"path"`
	// ID of its manifest.
	ID string `json:"id"`
}

// MemoryLayout is the guest's RAM.
type MemoryLayout struct {
	// Size of the memory file in bytes: the sum of the ranges.
	Size     uint64        `json:"size"`
	PageSize uint64        `json:"page_size"`
	Ranges   []MemoryRange `json:"ranges"`
}

// MemoryRange is memory.Range as it stands in a manifest.
type MemoryRange struct {
	Start memory.GPA `json:"start"`
	Size  uint64     `json:"size"`
}

// Device is a device of the guest.
type Device struct {
	ID   string `json:"id"`
	Type string `json:"type"`
	// Section of the state that holds the device.
	Section string `json:"section,omitempty"`
}

// Disk is a disk of the guest. Its contents are not in the snapshot unless File
// names them.
type Disk struct {
	ID       string `json:"id"`
	Path     string `json:"path"`
	Format   string `json:"format,omitempty"`
	Size     uint64 `json:"size"`
	ReadOnly bool   `json:"read_only,omitempty"`
	// Identity tells the disk from another one at the same path. What it is
	// made of is the caller's.
	Identity string `json:"identity,omitempty"`
	// File of the snapshot that is a copy of the disk.
	File string `json:"file,omitempty"`
}

// layout makes the MemoryLayout of ranges.
func layout(ranges []memory.Range) MemoryLayout {
	l := MemoryLayout{PageSize: PageSize}
	for _, r := range ranges {
		l.Ranges = append(l.Ranges, MemoryRange(r))
		l.Size += r.Size
	}
	return l
}

// ranges is the other direction.
func (l MemoryLayout) ranges() []memory.Range {
	ranges := make([]memory.Range, len(l.Ranges))
	for i, r := range l.Ranges {
		ranges[i] = memory.Range(r)
	}
	return ranges
}

// gpa is the guest address of an offset in the memory file.
func (l MemoryLayout) gpa(offset uint64) memory.GPA {
	for _, r := range l.Ranges {
		if offset < r.Size {
			return r.Start + memory.GPA(offset)
		}
		offset -= r.Size
	}
	return 0
}

// equal tells whether two guests have their RAM at the same place.
func (l MemoryLayout) equal(o MemoryLayout) bool {
	if l.Size != o.Size || len(l.Ranges) != len(o.Ranges) {
		return false
	}
	for i := range l.Ranges {
		if l.Ranges[i] != o.Ranges[i] {
			return false
		}
	}
	return true
}

func (l MemoryLayout) check() error {
	if l.PageSize != PageSize {
		return fmt.Errorf("pages of %d bytes: want %d", l.PageSize, PageSize)
	}
	if len(l.Ranges) == 0 || len(l.Ranges) > MaxRanges {
		return fmt.Errorf("%d ranges of memory: want 1 to %d", len(l.Ranges), MaxRanges)
	}
	var size uint64
	var end memory.GPA
	for _, r := range l.Ranges {
		if r.Size == 0 || r.Size > memory.MaxSize || r.Size%PageSize != 0 || r.Start%PageSize != 0 {
			return fmt.Errorf("memory of %d bytes at %#x: want whole pages, at most %d GiB", r.Size, uint64(r.Start), memory.MaxSize>>30)
		}
		if r.Start < end || r.Start > 1<<52 {
			return fmt.Errorf("memory at %#x: want ranges in rising order below 52 bits", uint64(r.Start))
		}
		end = memory.Range(r).End()
		size += r.Size
	}
	if size != l.Size || size > memory.MaxSize {
		return fmt.Errorf("memory of %d bytes in ranges of %d bytes together: want the same, at most %d GiB", l.Size, size, memory.MaxSize>>30)
	}
	return nil
}

// encode checks and writes the manifest.
func (m *Manifest) encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	p, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	if p = append(p, '\n'); len(p) > MaxManifest {
		return nil, fmt.Errorf("it has %d bytes: want at most %d", len(p), MaxManifest)
	}
	return p, nil
}

// decodeManifest reads and checks what encode wrote.
func decodeManifest(p []byte) (*Manifest, error) {
	m := new(Manifest)
	err := statejson.Unmarshal(p, m)
	if err != nil || m.Format != current {
		// First that it is of another version, which may have other fields.
		if err := checkFormat(p); err != nil {
			return nil, err
		}
	}
	if err == nil {
		err = m.check()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return m, nil
}

// checkFormat looks at the version of a manifest alone.
func checkFormat(p []byte) error {
	var version struct {
		Format *Version `json:"format"`
	}
	if err := statejson.Unmarshal(p, &version); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if version.Format == nil {
		return fmt.Errorf("%w: no format version", ErrDamaged)
	}
	return version.Format.check()
}

func (m *Manifest) check() error {
	if _, err := parseID(m.ID); err != nil {
		return err
	}
	switch {
	case m.Kind != Full && m.Kind != Diff:
		return fmt.Errorf("kind %.20q: want %q or %q", m.Kind, Full, Diff)
	case (m.Kind == Diff) != (m.Base != nil):
		return fmt.Errorf("kind %q and a base: want a base for a diff, none for a full snapshot", m.Kind)
	}
	if m.Base != nil {
		if _, err := parseID(m.Base.ID); err != nil {
			return fmt.Errorf("base: %w", err)
		}
		if m.Base.Path == "" {
			return fmt.Errorf("base has no path")
		}
	}
	if err := m.Memory.check(); err != nil {
		return err
	}
	return m.checkLists()
}

func (m *Manifest) checkLists() error {
	if n := max(len(m.CPUFeatures), len(m.Devices), len(m.Disks)); n > maxList {
		return fmt.Errorf("a list of %d entries: want at most %d", n, maxList)
	}
	strs := append([]string{m.Godwit, m.Name}, m.CPUFeatures...)
	if m.Base != nil {
		strs = append(strs, m.Base.Path)
	}
	for _, d := range m.Devices {
		strs = append(strs, d.ID, d.Type, d.Section)
	}
	for _, d := range m.Disks {
		if d.File != "" && checkExtra(d.File) != nil {
			return fmt.Errorf("disk %.40q in file %.40q: %w", d.ID, d.File, checkExtra(d.File))
		}
		strs = append(strs, d.ID, d.Path, d.Format, d.Identity)
	}
	for _, s := range strs {
		if len(s) > maxString || strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("string %.40q...: want at most %d bytes without zeros", s, maxString)
		}
	}
	return nil
}

// checkExtra looks at the name of a file that a caller adds to a snapshot.
func checkExtra(name string) error {
	switch name {
	case "", ".", "..", ManifestFile, StateFile, MemoryFile, SumsFile, PagesFile:
		return fmt.Errorf("not a name for a further file")
	}
	if len(name) > 200 || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("want a name of at most 200 bytes without slashes")
	}
	return nil
}

func parseID(s string) (id, error) {
	var i id
	if len(s) == hex.EncodedLen(len(i)) {
		if p, err := hex.DecodeString(s); err == nil && hex.EncodeToString(p) == s {
			return id(p), nil
		}
	}
	return i, fmt.Errorf("id %.40q: want 32 hexadecimal digits", s)
}

// String is how manifests have it: 32 hexadecimal digits.
func (i id) String() string { return hex.EncodeToString(i[:]) }
