package devices

// ring is a queue of bytes of fixed capacity.
type ring struct {
	buf  []byte
	head int // index of the oldest byte
	n    int // bytes in the queue
}

func newRing(capacity int) ring { return ring{buf: make([]byte, capacity)} }

func (r *ring) free() int { return len(r.buf) - r.n }

func (r *ring) clear() { r.head, r.n = 0, 0 }

// push appends b, and tells whether there was room for it.
func (r *ring) push(b byte) bool {
	if r.n == len(r.buf) {
		return false
	}
	r.buf[(r.head+r.n)%len(r.buf)] = b
	r.n++
	return true
}

// pop removes the oldest byte. An empty queue yields 0.
func (r *ring) pop() byte {
	if r.n == 0 {
		return 0
	}
	b := r.buf[r.head]
	r.head = (r.head + 1) % len(r.buf)
	r.n--
	return b
}

// write appends as much of p as there is room for.
func (r *ring) write(p []byte) int {
	for i, b := range p {
		if !r.push(b) {
			return i
		}
	}
	return len(p)
}

// bytes copies the queue, oldest byte first.
func (r *ring) bytes() []byte {
	out := make([]byte, r.n)
	for i := range out {
		out[i] = r.buf[(r.head+i)%len(r.buf)]
	}
	return out
}
