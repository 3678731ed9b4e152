package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/godwit-vmm/godwit/memory"
)

// MaxChain is how many buffers a chain may have. A driver with INDIRECT_DESC may
// send more of them than the queue has descriptors, so that is no limit.
const MaxChain = 1024

// Buffer is a piece of guest memory. The guest may change it at any time.
type Buffer struct {
	GPA  memory.GPA
	Data []byte
}

// Chain is a request of the driver (§2.7.4): buffers that the device reads,
// then buffers that it writes. It is used again for the next request.
type Chain struct {
	// Head is what Queue.Push wants.
	Head uint16
	// Read and Write are the buffers of the two parts, none of them empty.
	Read, Write []Buffer
	// ReadLen and WriteLen are the lengths of the two parts in bytes.
	ReadLen, WriteLen uint32

	mem *memory.Guest
}

// descriptor is one entry of a table, read once (§2.7.5).
type descriptor struct {
	addr  memory.GPA
	len   uint32
	flags uint16
	next  uint16
}

func readDescriptor(table []byte, i int) descriptor {
	d := table[i*descSize : (i+1)*descSize]
	rest := binary.LittleEndian.Uint64(d[8:])
	return descriptor{
		addr: memory.GPA(binary.LittleEndian.Uint64(d)),
		len:  uint32(rest), flags: uint16(rest >> 32), next: uint16(rest >> 48),
	}
}

// walk fills c with the chain that starts at head.
func (q *Queue) walk(c *Chain, head uint16) error {
	*c = Chain{Head: head, Read: c.Read[:0], Write: c.Write[:0], mem: q.mem}
	table, limit := q.desc, q.Size()
	nested := false
	at := int(head)
	for seen := 1; ; seen++ {
		if at >= len(table)/descSize {
			return q.broken("descriptor %d of a table of %d", at, len(table)/descSize)
		}
		if seen > limit {
			return q.broken("chain of more than %d descriptors, or a loop", limit)
		}
		d := readDescriptor(table, at)
		if d.flags&descIndirect != 0 {
			if err := q.checkIndirect(d, nested); err != nil {
				return err
			}
			var err error
			if table, err = q.mem.View(d.addr, uint64(d.len)); err != nil {
				return q.broken("indirect table: %w", err)
			}
			nested, at, seen, limit = true, 0, 0, min(len(table)/descSize, MaxChain)
			continue
		}
		if err := c.add(d); err != nil {
			return q.broken("descriptor %d: %w", at, err)
		}
		if d.flags&descNext == 0 {
			return nil
		}
		at = int(d.next)
	}
}

// checkIndirect checks a descriptor that stands for a table (§2.7.5.3).
func (q *Queue) checkIndirect(d descriptor, nested bool) error {
	switch {
	case !q.indirect:
		return q.broken("indirect table without the feature")
	case nested:
		return q.broken("indirect table inside an indirect table")
	case d.flags&descNext != 0:
		return q.broken("indirect table with a next descriptor")
	case d.len == 0 || d.len%descSize != 0:
		return q.broken("indirect table of %d bytes", d.len)
	}
	return nil
}

// add appends a buffer.
func (c *Chain) add(d descriptor) error {
	part, length := &c.Read, &c.ReadLen
	switch {
	case d.flags&descWrite != 0:
		part, length = &c.Write, &c.WriteLen
	case len(c.Write) > 0:
		return errReadAfterWrite
	}
	if d.len == 0 {
		return errEmpty
	}
	if len(c.Read)+len(c.Write) >= MaxChain {
		return errLong
	}
	// §2.7.5: a chain has at most 2^32 bytes in all.
	if uint64(c.ReadLen)+uint64(c.WriteLen)+uint64(d.len) > 1<<32-1 {
		return errLarge
	}
	data, err := c.mem.View(d.addr, uint64(d.len))
	if err != nil {
		return err
	}
	*part = append(*part, Buffer{d.addr, data})
	*length += d.len
	return nil
}

// CopyOut copies from the readable part, starting at off, and returns how many
// bytes there were.
func (c *Chain) CopyOut(off uint32, p []byte) int {
	n := 0
	for _, b := range c.Read {
		if uint64(off) >= uint64(len(b.Data)) {
			off -= uint32(len(b.Data))
			continue
		}
		n += copy(p[n:], b.Data[off:])
		off = 0
		if n == len(p) {
			break
		}
	}
	return n
}

// CopyIn copies to the writable part, starting at off, and returns how many
// bytes fitted. It marks the memory dirty.
func (c *Chain) CopyIn(off uint32, p []byte) int {
	n := 0
	for _, b := range c.Write {
		if uint64(off) >= uint64(len(b.Data)) {
			off -= uint32(len(b.Data))
			continue
		}
		m := copy(b.Data[off:], p[n:])
		c.mem.MarkDirty(b.GPA+memory.GPA(off), uint64(m))
		n += m
		off = 0
		if n == len(p) {
			break
		}
	}
	return n
}

// MarkWritten marks the first n bytes of the writable part dirty, after the
// kernel wrote them.
func (c *Chain) MarkWritten(n uint32) {
	for _, b := range c.Write {
		if n == 0 {
			return
		}
		m := min(n, uint32(len(b.Data)))
		c.mem.MarkDirty(b.GPA, uint64(m))
		n -= m
	}
}

// What a chain may not be.
var (
	errReadAfterWrite = errors.New("readable buffer behind a writable one")
	errEmpty          = errors.New("empty buffer")
	errLong           = fmt.Errorf("chain of more than %d buffers", MaxChain)
	errLarge          = errors.New("chain of 4 GiB or more")
)
