package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

// Snapshot is a snapshot that was opened for reading. Its methods may be called
// from any goroutine, Close when no other runs.
type Snapshot struct {
	dir      string
	manifest *Manifest
	state    *state
	mem      *os.File
	sums     *os.File
	pages    []uint64
}

// Open opens the snapshot at dir. It checks everything but the contents of memory
// and of memory.sums; see Verify. dir may be a symbolic link, its files may not.
func Open(dir string) (*Snapshot, error) {
	s, err := open(dir)
	if err != nil {
		return nil, fmt.Errorf("open snapshot %s: %w", dir, err)
	}
	return s, nil
}

func open(dir string) (s *Snapshot, err error) {
	path, err := absolute(dir)
	if err != nil {
		return nil, err
	}
	d, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	s = &Snapshot{dir: path}
	if err := s.read(d); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Snapshot) read(d *os.File) error {
	p, err := readSmall(d, StateFile, MaxStateSize)
	if err != nil {
		return err
	}
	if s.state, err = decodeState(p); err != nil {
		return fmt.Errorf("%s: %w", StateFile, err)
	}
	if err := s.readManifest(d); err != nil {
		return err
	}
	if s.mem, _, err = openRegular(d, MemoryFile, int64(s.manifest.Memory.Size), 0); err != nil {
		return err
	}
	sums := s.table(sumsMagic, ChunkSize)
	if s.sums, _, err = openRegular(d, SumsFile, sums.fileSize(), 0); err != nil {
		return err
	}
	var h [headerSize]byte
	if _, err := s.sums.ReadAt(h[:], 0); err != nil {
		return err
	}
	if _, err := sums.check(h[:]); err != nil {
		return fmt.Errorf("%s: %w", SumsFile, err)
	}
	if s.manifest.Kind == Diff {
		return s.readPages(d)
	}
	return nil
}

// readManifest reads the manifest that the state vouches for.
func (s *Snapshot) readManifest(d *os.File) error {
	p, err := readSmall(d, ManifestFile, MaxManifest)
	if err != nil {
		return err
	}
	if uint32(len(p)) != s.state.manifestSize || checksumOnce(p) != s.state.manifestCRC {
		return fmt.Errorf("%s: %w: it is not the one that %s was written with: it was changed, or comes from another snapshot", ManifestFile, ErrDamaged, StateFile)
	}
	if s.manifest, err = decodeManifest(p); err != nil {
		return fmt.Errorf("%s: %w", ManifestFile, err)
	}
	if s.manifest.ID != s.state.id.String() {
		return fmt.Errorf("%s: %w: id %s, want %v", ManifestFile, ErrDamaged, s.manifest.ID, s.state.id)
	}
	return nil
}

// readPages reads which pages a diff contains.
func (s *Snapshot) readPages(d *os.File) error {
	t := s.table(pagesMagic, PageSize)
	f, _, err := openRegular(d, PagesFile, t.fileSize(), 0)
	if err != nil {
		return err
	}
	defer f.Close()
	s.pages = make([]uint64, 0, t.bytes()/8)
	err = t.read(f, func(p []byte) {
		for ; len(p) > 0; p = p[8:] {
			s.pages = append(s.pages, binary.LittleEndian.Uint64(p))
		}
	})
	if err != nil {
		return fmt.Errorf("%s: %w", PagesFile, err)
	}
	if tail := t.entries() % 64; tail != 0 && s.pages[len(s.pages)-1]>>tail != 0 {
		return fmt.Errorf("%s: %w: it has pages beyond the end of memory", PagesFile, ErrDamaged)
	}
	return nil
}

func (s *Snapshot) table(magic string, unit uint32) table {
	return table{magic: magic, unit: unit, id: s.state.id, size: s.manifest.Memory.Size}
}

// Dir is the absolute path of the snapshot.
func (s *Snapshot) Dir() string { return s.dir }

// Manifest says what the snapshot is. The caller must not change it.
func (s *Snapshot) Manifest() *Manifest { return s.manifest }

// Ranges are the guest's RAM.
func (s *Snapshot) Ranges() []memory.Range { return s.manifest.Memory.ranges() }

// Section returns the data of a section of the state, which the caller must not
// change.
func (s *Snapshot) Section(name string) ([]byte, bool) {
	for _, section := range s.state.sections {
		if section.Name == name {
			return section.Data, true
		}
	}
	return nil, false
}

// Sections are all sections of the state in the order of the file. The caller must
// not change them.
func (s *Snapshot) Sections() []Section { return s.state.sections }

// MemoryFile is guest memory, opened for reading: for a diff only the pages of
// Pages, with holes elsewhere. Close closes it; a mapping of it stays.
func (s *Snapshot) MemoryFile() *os.File { return s.mem }

// Pages are the pages that a diff contains, in the order of the KVM dirty log: bit
// i%64 of word i/64 stands for the page at offset i*PageSize of the memory file. It
// is nil for a full snapshot. The caller must not change it.
func (s *Snapshot) Pages() []uint64 { return s.pages }

// Close closes the files.
func (s *Snapshot) Close() error {
	var errs []error
	for _, f := range []*os.File{s.mem, s.sums} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	s.mem, s.sums = nil, nil
	return errors.Join(errs...)
}
