package snapshot

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
)

// Chain is a snapshot with all that it builds upon, opened for reading. A full
// snapshot is a chain of one. The methods are as safe as those of Snapshot.
type Chain struct {
	// layers come newest first; the last is full.
	layers []*Snapshot
}

// Extent is a piece of guest memory that lies in one file, at the same offset as
// in the memory that the chain stands for. Both numbers are in bytes.
type Extent struct {
	Offset, Length int64
	// Layer is the index in Chain.Snapshots.
	Layer int
	// File is that snapshot's MemoryFile.
	File *os.File
}

// OpenChain opens a snapshot and its bases down to the full one, at most MaxChain.
// Each base must have the ID that the diff upon it names, and the same memory.
func OpenChain(dir string) (*Chain, error) {
	s, err := Open(dir)
	if err != nil {
		return nil, err
	}
	c := &Chain{layers: []*Snapshot{s}}
	seen := map[string]bool{s.manifest.ID: true}
	for s.manifest.Kind == Diff {
		base := s.baseDir()
		if s, err = c.openBase(base, seen); err != nil {
			return nil, errors.Join(fmt.Errorf("open snapshot %s, on which %s builds: %w", base, c.oldest().dir, err), c.Close())
		}
		c.layers = append(c.layers, s)
	}
	return c, nil
}

// openBase opens the base of the last layer.
func (c *Chain) openBase(dir string, seen map[string]bool) (*Snapshot, error) {
	above := c.oldest().manifest
	// The ID alone tells of a loop, whatever the paths look like.
	if seen[above.Base.ID] {
		return nil, fmt.Errorf("%w: snapshot %s builds upon itself", ErrDamaged, above.Base.ID)
	}
	seen[above.Base.ID] = true
	if len(c.layers) >= MaxChain {
		return nil, fmt.Errorf("a chain of more than %d snapshots: merge some", MaxChain)
	}
	s, err := open(dir)
	if err != nil {
		return nil, err
	}
	switch {
	case s.manifest.ID != above.Base.ID:
		err = fmt.Errorf("it is snapshot %s, want %s: it was replaced; put the right one there", s.manifest.ID, above.Base.ID)
	case !s.manifest.Memory.equal(above.Memory):
		err = fmt.Errorf("%w: its memory has another size or other addresses", ErrDamaged)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	// Nobody restores the state of a base, and there may be many.
	s.state.sections = nil
	return s, nil
}

// baseDir is where a diff says that its base is.
func (s *Snapshot) baseDir() string {
	if path := s.manifest.Base.Path; filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(s.dir), s.manifest.Base.Path)
}

func (c *Chain) oldest() *Snapshot { return c.layers[len(c.layers)-1] }

// Newest is the snapshot that was asked for: the state and the manifest of the
// chain are its own.
func (c *Chain) Newest() *Snapshot { return c.layers[0] }

// Snapshots are all of the chain, newest first. Only the newest has sections of
// state in memory.
func (c *Chain) Snapshots() []*Snapshot { return c.layers }

// Extents say in which file each piece of guest memory lies: in rising order,
// without gaps from 0 to the size of the memory, and as few as there can be. A
// guest that wrote here and there may have left more of them than a process can
// have mappings (vm.max_map_count): map the long ones and read the others.
func (c *Chain) Extents() []Extent {
	var extents []Extent
	pages := c.oldest().manifest.Memory.Size / PageSize
	for page := uint64(0); page < pages; {
		layer, n := c.run(page)
		n = min(n, pages-page)
		if last := len(extents) - 1; last >= 0 && extents[last].Layer == layer {
			extents[last].Length += int64(n) * PageSize
		} else {
			extents = append(extents, Extent{int64(page) * PageSize, int64(n) * PageSize, layer, c.layers[layer].mem})
		}
		page += n
	}
	return extents
}

// run finds the newest layer that has a page, and at least how many pages from
// there on are the same layer's. It may go beyond the end of memory.
func (c *Chain) run(page uint64) (layer int, n uint64) {
	word, bit := page/64, page%64
	rest := ^uint64(0)
	oldest := len(c.layers) - 1
	if oldest == 0 {
		return 0, c.oldest().manifest.Memory.Size / PageSize
	}
	for i, s := range c.layers[:oldest] {
		if owned := s.pages[word] & rest; owned>>bit&1 == 1 {
			return i, uint64(bits.TrailingZeros64(^(owned >> bit)))
		}
		rest &^= s.pages[word]
	}
	if n = uint64(bits.TrailingZeros64(^(rest >> bit))); n < 64-bit {
		return oldest, n
	}
	// Most of the memory of most guests has not changed for long.
	for word++; c.unchanged(word); word++ {
		n += 64
	}
	return oldest, n
}

// unchanged tells whether no diff has a page of a word of the bitmaps.
func (c *Chain) unchanged(word uint64) bool {
	for _, s := range c.layers[:len(c.layers)-1] {
		if word >= uint64(len(s.pages)) || s.pages[word] != 0 {
			return false
		}
	}
	return true
}

// Close closes all snapshots of the chain.
func (c *Chain) Close() error {
	var errs []error
	for _, s := range c.layers {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}
