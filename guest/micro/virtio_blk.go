package micro

import (
	"cmp"
	"fmt"
	"math/bits"
)

// Block is a program that reads or writes a virtio disk (§5.2): first Warmup
// requests that do not count, then Requests, between the two time stamps. It
// keeps Depth requests in flight throughout.
type Block struct {
	Driver
	// Access is the direction.
	Access Access
	// Random picks each request's place at random, by Seed; else they follow
	// each other from the start of the disk, and begin there again at its end.
	Random bool
	Seed   uint64
	// Size of a request in bytes is a power of two from 512 to 16 MiB.
	Size int
	// Segment is how many bytes go into one descriptor; 0 means Size.
	Segment int
	// Depth is how many requests are in flight; 0 means 1.
	Depth int
	// Span is how many bytes of the disk are used, from its start; 0 means all.
	Span uint64
	// Requests is their number, or Forever; without Verify then.
	Requests, Warmup uint64
	// Flush sends a flush after so many requests, when all of them are done,
	// and at the end; 0 means never.
	Flush uint64
	// Verify compares what is read with Pattern. Written is the pattern; after
	// the last write and outside of the time stamps all is read back and
	// compared. Without it, what is written is Pattern of offset 0.
	Verify bool
}

// Limits of Block.
const (
	maxDepth     = 256
	maxBlockSize = 16 << 20
	sectorSize   = 512
)

func (b *Block) check() error {
	switch {
	case b.Size < sectorSize || b.Size > maxBlockSize || bits.OnesCount(uint(b.Size)) != 1:
		return fmt.Errorf("micro: requests of %d bytes: want a power of two from %d to %d", b.Size, sectorSize, maxBlockSize)
	case b.Segment < 1 || b.Segment > b.Size:
		return fmt.Errorf("micro: segments of %d bytes in requests of %d", b.Segment, b.Size)
	case b.Depth < 1 || b.Depth > maxDepth:
		return fmt.Errorf("micro: %d requests in flight: want 1 to %d", b.Depth, maxDepth)
	case b.Depth*b.Size > maxBuffers:
		return fmt.Errorf("micro: %d requests of %d bytes in flight: want at most %d bytes in all", b.Depth, b.Size, maxBuffers)
	case b.Verify && b.Requests == Forever:
		return fmt.Errorf("micro: requests without end cannot be verified")
	}
	return nil
}

// Requests of a disk (§5.2.6) and its features (§5.2.3).
const (
	blockIn      = 0
	blockOut     = 1
	blockFlush   = 4
	blockID      = 8
	blockDiscard = 11
	blockZeroes  = 13

	featureSizeMax = 1 << 1
	featureSegMax  = 1 << 2
	featureFlush   = 1 << 9

	configCapacity = 0
	configSizeMax  = 8
	configSegMax   = 12
)

// ELF is the program. The result count is the number of requests.
func (b Block) ELF() ([]byte, error) {
	b.Segment = cmp.Or(b.Segment, b.Size)
	b.Depth = cmp.Or(b.Depth, 1)
	if err := b.check(); err != nil {
		return nil, err
	}
	p := newBlockProgram(b)
	required := uint64(0)
	if b.Flush > 0 {
		required = featureFlush
	}
	// A device whose driver cannot flush writes through its cache (§5.2.6.2).
	p.begin(blockDevice, required, featureSizeMax|featureSegMax|featureFlush)
	p.checkLimits()
	if b.Access == Write {
		p.fillBuffers()
	}
	p.emitPasses()
	return p.finish()
}

// blockProgram is a Block in the making. While requests are in flight, R8 is the
// state of the random numbers or the next place.
type blockProgram struct {
	*driver
	Block
	disk     *requestSet
	segments int

	// Arrays with an element for each request in flight.
	headers  uint64 // struct virtio_blk_req up to sector: 16 bytes
	statuses uint64 // bytes
	offsets  uint64 // quads: where on the disk

	places Mem // of Size bytes on the disk
	left   Mem // requests after the next flush
	// readTables are the chains as reads, for reading back.
	readTables uint64
	flush      Label
}

func newBlockProgram(b Block) *blockProgram {
	segments := (b.Size + b.Segment - 1) / b.Segment
	p := &blockProgram{driver: newDriver(b.Driver), Block: b, segments: segments}
	p.disk = p.newRequests(0, b.Depth, segments+2, 2)
	p.headers = p.alloc(16*(b.Depth+1), 16)
	p.statuses = p.alloc(b.Depth+1, 8)
	p.offsets = p.alloc(8*b.Depth, 8)
	p.places, p.left = p.variable(), p.variable()
	p.flush = p.routine(p.emitFlush)

	p.describeAll(Read)
	if b.Access == Write {
		addr, size := p.disk.tables()
		p.readTables = p.alloc(size, 16)
		copy(p.bytes(p.readTables), p.bytes(addr)[:size])
		p.describeAll(Write)
	}
	p.describeFlush()
	return p
}

func (p *blockProgram) describeAll(dir Access) {
	for i := range p.Depth {
		chain := []buffer{{p.headers + uint64(16*i), 16, false}}
		chain = append(chain, split(p.buffer(i), p.Size, p.Segment, dir == Read)...)
		p.describe(p.disk, i, append(chain, buffer{p.statuses + uint64(i), 1, true}))
	}
}

// buffer is where the data of request i is.
func (p *blockProgram) buffer(i int) uint64 { return BufferStart + uint64(i*p.Size) }

// describeFlush makes the one flush request: header and status behind those of
// the others.
func (p *blockProgram) describeFlush() {
	i, header := p.disk.spare(), p.headers+uint64(16*p.Depth)
	p.putDescriptor(p.disk.desc, i, buffer{header, 16, false}, descNext, i+1)
	p.putDescriptor(p.disk.desc, i+1, buffer{p.statuses + uint64(p.Depth), 1, true}, 0, 0)
	p.put32(header, blockFlush)
}

// checkLimits reads the configuration and ends the program if the requests are
// beyond it.
func (p *blockProgram) checkLimits() {
	p.config()
	for _, limit := range []struct {
		feature int32
		reg     int32
		need    int
	}{{featureSizeMax, configSizeMax, p.Segment}, {featureSegMax, configSegMax, p.segments}} {
		none := p.NewLabel()
		p.Load(Quad, RAX, result(resultFeatures))
		p.TestImm(RAX, limit.feature)
		p.Jcc(Equal, none)
		p.Load(Long, RAX, Mem{RBX, limit.reg})
		p.OpImm(Cmp, RAX, int32(limit.need))
		p.failUnless(AboveEqual, StatusConfig, RAX)
		p.Bind(none)
	}
	p.Load(Long, RCX, Mem{RBX, configCapacity + 4})
	p.Shl(RCX, 32)
	p.Load(Long, RAX, Mem{RBX, configCapacity})
	p.Op(Or, RAX, RCX)
	p.Shl(RAX, 9)
	if p.Span > 0 {
		p.MovImm(RCX, p.Span)
		p.Op(Cmp, RAX, RCX)
		p.failUnless(AboveEqual, StatusConfig, RAX)
		p.Mov(RAX, RCX)
	}
	p.Shr(RAX, uint8(bits.TrailingZeros(uint(p.Size))))
	p.failUnless(NotEqual, StatusConfig, RAX)
	p.Store(Quad, p.places, RAX)
}

// fillBuffers makes the data of requests that are not verified.
func (p *blockProgram) fillBuffers() {
	p.MovImm(RDI, BufferStart)
	p.MovImm(RAX, patternAt(p.Seed, 0))
	p.MovImm(RCX, uint64(p.Size*p.Depth/8))
	p.pattern(func() { p.Store(Quad, Mem{Base: RDI}, RAX) })
}

// pass is a run over the disk.
type pass struct {
	access  Access
	verify  bool
	counted bool // in the result words
}

// emitPasses is the main program: warm-up, the requests that count, and reading
// back. Each pass goes to the same places.
func (p *blockProgram) emitPasses() {
	main := pass{p.Access, p.Verify, true}
	run := p.routine(func() { p.emitPass(main) })
	if p.Warmup > 0 {
		p.rewind()
		p.runPass(run, p.Warmup)
		p.restart()
	}
	p.rewind()
	p.stampTo(result(ResultFirstTSC))
	p.runPass(run, p.Requests)
	p.stampTo(result(ResultLastTSC))
	if p.Access == Read || !p.Verify {
		return
	}
	tables, size := p.disk.tables()
	p.Lea(RSI, at(p.readTables))
	p.Lea(RDI, at(tables))
	p.MovImm(RCX, uint64(size/8))
	p.RepMovsq()
	p.rewind()
	p.runPass(p.routine(func() { p.emitPass(pass{Read, true, false}) }), p.Requests)
}

func (p *blockProgram) rewind() {
	if p.Random {
		p.MovImm(R8, max(p.Seed, 1))
	} else {
		p.MovImm(R8, 0)
	}
}

// runPass calls a pass for n requests, or for as many as go between two flushes
// until there were n.
func (p *blockProgram) runPass(run Label, n uint64) {
	if p.Flush == 0 {
		p.MovImm(R14, total(n))
		p.Call(run)
		return
	}
	p.MovImm(RAX, total(n))
	p.Store(Quad, p.left, RAX)
	loop, last := p.Here(), p.NewLabel()
	p.Load(Quad, RAX, p.left)
	p.MovImm(R14, p.Flush)
	p.Op(Cmp, R14, RAX)
	p.Jcc(BelowEqual, last)
	p.Mov(R14, RAX)
	p.Bind(last)
	p.Op(Sub, RAX, R14)
	p.Store(Quad, p.left, RAX)
	p.Call(run)
	p.Call(p.flush)
	p.OpMemImm(Cmp, Quad, p.left, 0)
	p.Jcc(NotEqual, loop)
}
