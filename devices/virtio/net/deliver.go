package net

import (
	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/net/pcap"
)

// take has a frame of n bytes with its header, which the kernel has put into
// the held buffers and, where those did not suffice, into spill. It tells
// whether there may be another frame.
func (r *receiver) take(n int) bool {
	if n <= headerSize || n > r.room+len(r.spill) {
		r.drop() // no frame, or one that was cut off
		return true
	}
	r.owedBytes += uint64(n - headerSize)
	r.owedFrames++
	r.length, r.direct = n, min(n, r.room)
	return r.finish()
}

// finish gives the frame to the driver when there are buffers for all of it. It
// tells whether there may be another frame.
func (r *receiver) finish() bool {
	for r.length > r.room {
		if r.features&FeatureMergeable == 0 || r.crowded || r.count == min(maxPending, r.queue.Size()) {
			r.drop() // it will never fit
			return true
		}
		if !r.hold() && !r.starve() {
			return false
		}
	}
	if r.length > r.direct {
		r.unspill()
	}
	buffers := r.spread()
	if !fixHeader(&r.chains[r.first], r.features, buffers) {
		r.drop()
		return true
	}
	if r.device.config.Capture != nil {
		r.record(buffers)
	}
	r.counts.frames.Add(1)
	r.counts.bytes.Add(uint64(r.length - headerSize))
	for left := r.length; left > 0; {
		c := &r.chains[r.first]
		n := min(left, int(c.WriteLen))
		left -= n
		c.MarkWritten(uint32(n))
		if left > 0 {
			r.queue.Fill(c.Head, uint32(n))
		} else {
			r.queue.Push(c.Head, uint32(n)) // the driver gets all at once
		}
		r.release(c)
	}
	r.length = 0
	return true
}

// drop forgets the frame. The held buffers wait for the next one.
func (r *receiver) drop() {
	r.counts.dropped.Add(1)
	r.length = 0
}

// release lets go of the first held buffer.
func (r *receiver) release(c *virtio.Chain) {
	r.first = (r.first + 1) % maxPending
	r.count--
	r.room -= int(c.WriteLen)
	r.begin += len(c.Write)
	r.crowded = false
}

// spread is the number of buffers that the frame takes.
func (r *receiver) spread() int {
	n := 0
	for left := r.length; left > 0; n++ {
		left -= int(r.chains[(r.first+n)%maxPending].WriteLen)
	}
	return n
}

// unspill copies what is in spill to where it belongs.
func (r *receiver) unspill() {
	rest := r.spill[:r.length-r.direct]
	at := r.direct
	for i := r.first; len(rest) > 0; i = (i + 1) % maxPending {
		c := &r.chains[i]
		if at >= int(c.WriteLen) {
			at -= int(c.WriteLen)
			continue
		}
		rest = rest[c.CopyIn(uint32(at), rest):]
		at = 0
	}
}

// record captures the frame, which is spread over so many buffers.
func (r *receiver) record(buffers int) {
	p := r.capture[:0]
	for i := range buffers {
		for _, b := range r.chains[(r.first+i)%maxPending].Write {
			p = append(p, b.Data[:min(len(b.Data), r.length-len(p))]...)
		}
	}
	r.capture = p
	if err := r.device.config.Capture.Write(pcap.In, p[headerSize:]); err != nil {
		r.device.warnings.add(warnCapture, err)
	}
}
