package blk

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// present is the set of the clusters that are in an overlay, and what is to be
// done to keep it in the file. Looking is a load for each word, and may be done
// from any goroutine at any time; so may the rest.
type present struct {
	layout
	// unkept is set if the overlay ends with the process: nothing is written.
	unkept bool
	fd     int // of the overlay, or -1
	boot   bootID

	// words is the set. They change with mu held.
	words []atomic.Uint64

	// mu makes one of changing a word in the file and in memory. changed are
	// the blocks of words in which there are bits that no flush has seen yet.
	mu      sync.Mutex
	changed []bool
	scratch [overlayBlock]byte

	// syncing is held by a flush, and begun counts them. The rest belongs to
	// the one that holds it: ended is the last that was a success, and failed
	// is set when one was not.
	syncing sync.Mutex
	begun   atomic.Uint64
	ended   uint64
	failed  unix.Errno
	// durable is what "durable" in the file is, or becomes with the blocks
	// that are pending.
	durable []byte
	pending []bool
	// folder is the directory that got a new file, until it is durable that
	// it did, or -1.
	folder int
}

const (
	wordBits = 64
	// wordsPerBlock is how many words overlayBlock holds, and blockBits how
	// many clusters.
	wordsPerBlock = overlayBlock / 8
	blockBits     = overlayBlock * 8
)

func newPresent(l layout) *present {
	blocks := l.bitmap / overlayBlock
	return &present{
		layout: l, fd: -1, folder: -1, words: make([]atomic.Uint64, blocks*wordsPerBlock),
		changed: make([]bool, blocks), pending: make([]bool, blocks), durable: make([]byte, l.bitmap),
	}
}

// has tells whether the overlay has a cluster.
func (p *present) has(cluster uint64) bool {
	return p.words[cluster/wordBits].Load()>>(cluster%wordBits)&1 != 0
}

// all tells whether the overlay has all of the clusters.
func (p *present) all(c clusters) bool {
	for n := c.first; n <= c.last; n++ {
		if !p.has(n) {
			return false
		}
	}
	return true
}

// add adds clusters, whose contents are in the file.
func (p *present) add(c clusters) unix.Errno {
	p.mu.Lock()
	defer p.mu.Unlock()
	for first := c.first; first <= c.last; {
		// The bits of one block at a time.
		last := min(c.last, first/blockBits*blockBits+blockBits-1)
		if errno := p.addInBlock(clusters{first, last}); errno != 0 {
			return errno
		}
		first = last + 1
	}
	return 0
}

// addInBlock adds clusters whose bits are in one block: first to the file, for
// what the guest has seen must be there when the process is killed.
func (p *present) addInBlock(c clusters) unix.Errno {
	first, last := c.first/wordBits, c.last/wordBits
	buffer := p.scratch[:0]
	for w := first; w <= last; w++ {
		buffer = binary.LittleEndian.AppendUint64(buffer, p.words[w].Load()|mask(w, c))
	}
	if !p.unkept {
		if errno := writeAt(p.fd, buffer, p.writtenAt+first*8); errno != 0 {
			return errno
		}
		p.changed[first/wordsPerBlock] = true
	}
	for w := first; w <= last; w++ {
		p.words[w].Store(binary.LittleEndian.Uint64(buffer[(w-first)*8:]))
	}
	return 0
}

// mask are the bits of the clusters in a word.
func mask(word uint64, c clusters) uint64 {
	bits := ^uint64(0)
	if start := word * wordBits; c.first > start {
		bits <<= c.first - start
	}
	if end := word*wordBits + wordBits - 1; c.last < end {
		bits &= ^uint64(0) >> (end - c.last)
	}
	return bits
}

// sync makes durable what was complete when it was called: contents first, then
// the bits. Who waited for others while one of them began and ended is served by
// that one.
func (p *present) sync() unix.Errno {
	if p.unkept {
		return 0
	}
	next := p.begun.Load() + 1
	p.syncing.Lock()
	defer p.syncing.Unlock()
	switch {
	case p.failed != 0:
		return p.failed
	case p.ended >= next:
		return 0
	}
	now := p.begun.Add(1)
	if p.failed = p.syncNow(); p.failed != 0 {
		// Nobody knows what has become of the contents that the kernel
		// could not write, and a second attempt would not tell. What is
		// durable stays the truth, also when the file is opened again.
		_ = p.writeSession(bootID{})
		return p.failed
	}
	p.ended = now
	return 0
}

func (p *present) syncNow() unix.Errno {
	changed := p.note()
	if errno := fdatasync(p.fd); errno != 0 {
		return errno
	}
	if changed {
		for i, pending := range p.pending {
			if !pending {
				continue
			}
			at := uint64(i) * overlayBlock
			if errno := writeAt(p.fd, p.durable[at:at+overlayBlock], p.durableAt+at); errno != 0 {
				return errno
			}
			p.pending[i] = false
		}
		if errno := fdatasync(p.fd); errno != 0 {
			return errno
		}
	}
	return p.syncFolder()
}

// note copies the blocks that have changed, and returns whether there are any.
func (p *present) note() (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.changed {
		if !p.changed[i] {
			continue
		}
		changed = true
		p.changed[i], p.pending[i] = false, true
		for w := i * wordsPerBlock; w < (i+1)*wordsPerBlock; w++ {
			binary.LittleEndian.PutUint64(p.durable[w*8:], p.words[w].Load())
		}
	}
	return changed
}

// unsynced tells whether there are clusters that a crash of the host would lose.
func (p *present) unsynced() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, changed := range p.changed {
		if changed {
			return true
		}
	}
	return false
}

// syncFolder makes it durable that the file is there.
func (p *present) syncFolder() unix.Errno {
	if p.folder < 0 {
		return 0
	}
	if errno := errnoOf(unix.Fsync(p.folder)); errno != 0 && !cannot(errno) {
		return errno
	}
	return p.closeFolder()
}

func (p *present) closeFolder() unix.Errno {
	if p.folder < 0 {
		return 0
	}
	fd := p.folder
	p.folder = -1
	return errnoOf(unix.Close(fd))
}

// load reads the set of a file that was there before, and begins a session. It
// writes nothing before it has seen that the file makes sense.
func (p *present) load() error {
	var last bootID
	if errno := readAt(p.fd, last[:], sessionAt, 0); errno != 0 {
		return fmt.Errorf("read the overlay: %w", errno)
	}
	sameBoot := last == p.boot && p.boot != bootID{}
	for i := range p.changed {
		if errno := p.loadBlock(i, sameBoot); errno != 0 {
			return fmt.Errorf("read the overlay: %w", errno)
		}
	}
	for n := p.clusters; n < p.bitmap*8; n++ {
		if p.has(n) {
			return fmt.Errorf("%w (it has clusters behind the end of the disk)", errDamaged)
		}
	}
	if !sameBoot {
		if errno := p.resetWritten(); errno != 0 {
			return fmt.Errorf("write the overlay: %w", errno)
		}
	}
	if errno := p.writeSession(p.boot); errno != 0 {
		return fmt.Errorf("write the overlay: %w", errno)
	}
	return nil
}

// loadBlock reads a block of both bitmaps, and notes if they differ.
func (p *present) loadBlock(i int, sameBoot bool) unix.Errno {
	at := uint64(i) * overlayBlock
	var written, durable [overlayBlock]byte
	errno := readAt(p.fd, written[:], p.writtenAt+at, 0)
	if errno == 0 {
		errno = readAt(p.fd, durable[:], p.durableAt+at, 0)
	}
	if errno != 0 {
		return errno
	}
	p.changed[i] = written != durable
	if durable != [overlayBlock]byte{} { // what stays zero takes no memory
		copy(p.durable[at:], durable[:])
	}
	for w := range wordsPerBlock {
		word := binary.LittleEndian.Uint64(durable[w*8:])
		if sameBoot {
			word |= binary.LittleEndian.Uint64(written[w*8:])
		}
		if word != 0 {
			p.words[i*wordsPerBlock+w].Store(word)
		}
	}
	return 0
}

// resetWritten makes "written" what "durable" is, where loadBlock found that it
// is not.
func (p *present) resetWritten() unix.Errno {
	for i, changed := range p.changed {
		if !changed {
			continue
		}
		at := uint64(i) * overlayBlock
		if errno := writeAt(p.fd, p.durable[at:at+overlayBlock], p.writtenAt+at); errno != 0 {
			return errno
		}
		p.changed[i] = false
	}
	return 0
}

// writeSession says in the file in which boot it is open.
func (p *present) writeSession(boot bootID) unix.Errno { return writeAt(p.fd, boot[:], sessionAt) }
