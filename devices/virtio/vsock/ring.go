package vsock

// ring is what a host's socket did not take yet: a bounded queue of bytes. Its
// memory is there only while it is needed.
type ring struct {
	data  []byte
	start int // of the oldest byte
	n     int // how many there are
}

// room is the free part, in two pieces of which the second may be empty.
func (r *ring) room() (a, b []byte) {
	end := r.start + r.n
	if end >= len(r.data) {
		return r.data[end-len(r.data) : r.start], nil
	}
	return r.data[end:], r.data[:r.start]
}

// filled is the full part, in two pieces of which the second may be empty.
func (r *ring) filled() (a, b []byte) {
	if end := r.start + r.n; end > len(r.data) {
		return r.data[r.start:], r.data[:end-len(r.data)]
	}
	return r.data[r.start : r.start+r.n], nil
}

// put appends p, for which there is room.
func (r *ring) put(p []byte) {
	a, b := r.room()
	m := copy(a, p)
	copy(b, p[m:])
	r.n += len(p)
}

// putRest appends what lies behind the first n bytes of v; there is room for it.
func (r *ring) putRest(v *vector, n int) {
	for i := range v.pieces {
		p := v.bytes(i)
		r.put(p[min(n, len(p)):])
		n -= min(n, len(p))
	}
}

// drop forgets the n oldest bytes.
func (r *ring) drop(n int) {
	r.start += n
	if r.start >= len(r.data) {
		r.start -= len(r.data)
	}
	r.n -= n
}
