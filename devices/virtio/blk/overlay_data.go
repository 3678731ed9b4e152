package blk

import (
	"bytes"
	"sync"

	"golang.org/x/sys/unix"
)

// Whoever brings clusters into the overlay claims them first, puts all of their
// contents into the file, and adds them to the set at the end. What they hold in
// the file before does not matter: something that failed, or was killed, may
// have left it there. Clusters that are in the overlay stay in it, and need no
// claim.

// place is where the next bytes of a read or write are. Those of a write are in
// the overlay, or on the way there.
func (o *overlay) place(r *request) (m *image, offset uint64, n uint32) {
	if r.work == workWrite {
		return o.file, o.dataAt + r.offset, r.left()
	}
	m, offset, length := o.locate(r.offset, uint64(r.left()))
	return m, offset, uint32(length)
}

// locate is that of Device.
func (o *overlay) locate(offset, length uint64) (m *image, at, n uint64) {
	c := clustersOf(span{offset: offset, length: length})
	here := o.has(c.first)
	next := c.first + 1
	for next <= c.last && o.has(next) == here {
		next++
	}
	n = min(length, next*clusterSize-offset)
	if here {
		return o.file, o.dataAt + offset, n
	}
	return o.base, offset, n
}

// run does the work of a request on the calling thread, however long it takes.
func (o *overlay) run(r *request) (errno unix.Errno) {
	switch r.work {
	case workRead:
		return r.move(0)
	case workWrite:
		errno = o.write(r, 0)
	case workFlush:
		return o.sync()
	case workDiscard:
		errno = o.each(r.spans, o.discard)
	case workZeroes:
		errno = o.each(r.spans, o.zero)
	}
	if errno == 0 && r.durable {
		errno = o.sync()
	}
	return errno
}

func (o *overlay) each(spans []span, do func(span) unix.Errno) unix.Errno {
	for _, s := range spans {
		if errno := do(s); errno != 0 {
			return errno
		}
	}
	return 0
}

// write does what is left of a write. With RWF_NOWAIT it returns EAGAIN, and has
// written nothing of it, where it would have to wait for the base or for others.
func (o *overlay) write(r *request, flags int) unix.Errno {
	s := span{offset: r.offset, length: uint64(r.left())}
	c := clustersOf(s)
	if o.all(c) {
		return r.move(0)
	}
	if flags == 0 {
		o.claims.take(c)
	} else if !o.claims.try(c) {
		return unix.EAGAIN
	}
	defer o.claims.give(c)
	errno := o.copyAround(s, flags)
	if errno == unix.EAGAIN {
		return errno
	}
	if errno == 0 {
		errno = r.move(0)
	}
	return o.finish(c, errno)
}

// zero makes a span read as zeros.
func (o *overlay) zero(s span) unix.Errno {
	c := clustersOf(s)
	if o.all(c) {
		return o.file.zeroSpan(o.inFile(s))
	}
	o.claims.take(c)
	defer o.claims.give(c)
	errno := o.copyAround(s, 0)
	if errno == 0 {
		errno = o.file.zeroSpan(o.inFile(s))
	}
	return o.finish(c, errno)
}

// discard makes a span read as zeros, but for parts of clusters that are in the
// base: it would take more space to forget them than to leave them (§5.2.6.2
// allows that).
func (o *overlay) discard(s span) unix.Errno {
	c := clustersOf(s)
	if o.all(c) {
		return o.file.discardSpan(o.inFile(s))
	}
	o.claims.take(c)
	defer o.claims.give(c)
	if before := s.offset % clusterSize; before != 0 && !o.has(c.first) {
		skip := min(clusterSize-before, s.length)
		s.offset, s.length = s.offset+skip, s.length-skip
	}
	if s.length == 0 {
		return 0
	}
	c = clustersOf(s)
	if after := (s.offset + s.length) % clusterSize; after != 0 && s.offset+s.length < o.size && !o.has(c.last) {
		s.length -= min(after, s.length)
	}
	if s.length == 0 {
		return 0
	}
	if errno := o.file.discardSpan(o.inFile(s)); errno != 0 {
		return errno
	}
	return o.add(clustersOf(s))
}

// inFile is a span of the disk in the file of the overlay.
func (o *overlay) inFile(s span) span {
	s.offset += o.dataAt
	return s
}

// finish adds clusters whose contents are in the file, or gives the space back
// of those where that failed.
func (o *overlay) finish(c clusters, errno unix.Errno) unix.Errno {
	if errno == 0 {
		errno = o.add(c)
	}
	if errno == 0 {
		return 0
	}
	for n := c.first; n <= c.last; n++ {
		if !o.has(n) {
			_ = o.file.discardSpan(o.inFile(span{offset: n * clusterSize, length: clusterSize}))
		}
	}
	return errno
}

// copyAround copies from the base what clusters that are not in the overlay have
// beside a span that begins or ends in them. With RWF_NOWAIT it returns EAGAIN if
// the page cache of the base does not have it.
func (o *overlay) copyAround(s span, flags int) unix.Errno {
	c, end := clustersOf(s), s.offset+s.length
	start, stop := c.first*clusterSize, min((c.last+1)*clusterSize, o.size)
	before, after := start < s.offset && !o.has(c.first), end < stop && !o.has(c.last)
	if before && after && c.first == c.last {
		return o.copyUp(start, stop, flags) // all at once is faster than two parts
	}
	if before {
		if errno := o.copyUp(start, s.offset, flags); errno != 0 {
			return errno
		}
	}
	if after {
		return o.copyUp(end, stop, flags)
	}
	return 0
}

// buffers are what clusters are copied through, clusterSize each.
var buffers = sync.Pool{New: func() any { return new([clusterSize]byte) }}

// copyUp copies a part of a cluster from the base. Zeros become a hole.
func (o *overlay) copyUp(from, to uint64, flags int) unix.Errno {
	buffer := buffers.Get().(*[clusterSize]byte)
	defer buffers.Put(buffer)
	p := buffer[:to-from]
	errno := readAt(o.base.buffered, p, from, flags)
	switch {
	case flags != 0 && errno == unix.EOPNOTSUPP:
		return unix.EAGAIN // the file system cannot tell
	case errno != 0:
		return errno
	case bytes.Equal(p, zeros[:len(p)]):
		return o.file.zeroSpan(span{offset: o.dataAt + from, length: to - from, unmap: true})
	}
	return writeAt(o.file.buffered, p, o.dataAt+from)
}
