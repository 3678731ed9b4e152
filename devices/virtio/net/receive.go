package net

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

const (
	// maxPending is how many buffers of the driver a receiver holds at most,
	// and so over how many a frame may be spread. Those of Linux have 1.5 KiB
	// or more.
	maxPending = 128
	// budget is how many frames are served before others on the loop have
	// their turn, and batch how many before the driver hears of them.
	budget = 256
	batch  = 64
)

// receiver takes frames from the back end to the guest.
//
// It holds buffers for the largest frame, if the driver has given as many. The
// next frame is read into them, and what does not fit into spill; it then waits
// until the driver has given more.
type receiver struct {
	worker
	// features are those that the driver accepted. want is how many bytes
	// the largest frame takes with them.
	features uint64
	want     int

	// chains is a ring of the held buffers: count of them, from first on.
	// room is how many bytes they have.
	chains             [maxPending]virtio.Chain
	first, count, room int
	// vectors from begin to end are those of the held buffers. There is
	// always one more, for spill.
	vectors    [2 * maxVectors]unix.Iovec
	begin, end int
	// crowded is set when there are no vectors for one more buffer.
	crowded bool
	spill   [maxFrame]byte

	// length is that of the frame that waits for buffers, or 0. The first
	// direct bytes of it are in the held buffers, the rest is in spill.
	length, direct int

	// owedBytes and owedFrames went through, and the limits do not know of
	// them yet: how long a frame is shows when it has been read.
	owedBytes, owedFrames uint64

	// spin is for the driver's next buffer.
	spin spin

	capture []byte // the frame to be captured
}

func (r *receiver) start(driver *virtio.Driver, q *virtio.Queue) error {
	r.features = driver.Features
	r.want = headerSize + ethernetHeader + tags + int(r.device.mtu)
	if r.features&largeFrames != 0 {
		r.want = maxFrame
	}
	r.first, r.count, r.room, r.begin, r.end, r.crowded = 0, 0, 0, 0, 0, false
	r.spin = newSpin()
	if err := r.worker.start(driver, q, r.run); err != nil || q == nil {
		return err
	}
	return r.loop.Add(r.fd, unix.EPOLLIN|unix.EPOLLET, func(uint32) { r.run() })
}

// stop gives the held buffers back to the queue, untaken, after halt. A frame in
// them that waits for more is lost.
func (r *receiver) stop() {
	if r.length > 0 {
		r.drop()
	}
	for ; r.count > 0; r.count-- {
		r.queue.Unpop()
	}
	r.worker.stop()
}

// run takes frames until there are none, or no buffers for them, or a limit is
// reached. The events for all three are edges, after which it is called again.
func (r *receiver) run() {
	if r.failed {
		return
	}
	r.queue.DisableKicks()
	for n := 0; ; n++ {
		if n == budget {
			r.queue.Kick() // to go on
			break
		}
		if n%batch == batch-1 {
			r.queue.Notify()
		}
		if !r.step() {
			break
		}
	}
	r.queue.Notify()
}

// step takes one frame, and tells whether there may be another.
func (r *receiver) step() bool {
	if r.length > 0 {
		return r.finish()
	}
	if wait := r.limiter.Take(r.owedBytes, r.owedFrames); wait > 0 {
		r.timer.Set(wait)
		return false
	}
	r.owedBytes, r.owedFrames = 0, 0
	if !r.gather() {
		return false
	}
	r.vectors[r.end] = vector(r.spill[:])
	n, errno := readv(r.fd, r.vectors[r.begin:r.end+1])
	switch {
	case errno == 0 && n > 0:
		return r.take(n)
	case errno == unix.EINTR:
		return true
	case errno == unix.EAGAIN:
	case errno == unix.EBADFD && !r.device.uses(r.pair):
		// No frames come on a queue of a tap that is not in use.
	default:
		r.device.lose(errno)
	}
	return false
}

// gather holds as many buffers as the largest frame needs, or as there are. It
// returns false if there are none at all.
func (r *receiver) gather() bool {
	most := maxPending
	if r.features&FeatureMergeable == 0 {
		most = 1 // a frame has to fit into the first
	}
	for {
		for r.room < r.want && r.count < most && !r.crowded && r.hold() {
		}
		if r.failed || r.count > 0 {
			return !r.failed
		}
		if !r.starve() {
			return false
		}
	}
}

// hold takes one more buffer of the driver, if there is one.
func (r *receiver) hold() bool { return r.keep(r.queue.Pop(r.spare())) }

// spare is where the next buffer goes.
func (r *receiver) spare() *virtio.Chain { return &r.chains[(r.first+r.count)%maxPending] }

// keep holds the buffer that was taken into spare, if ok is set.
func (r *receiver) keep(ok bool, err error) bool {
	c := r.spare()
	if err == nil && ok && c.WriteLen < headerSize {
		err = fmt.Errorf("receive buffer of %d bytes, want %d or more: %w", c.WriteLen, headerSize, virtio.ErrBroken)
	}
	if err != nil {
		r.fail(err)
	}
	if !ok || r.failed {
		return false
	}
	if r.end+len(c.Write) >= len(r.vectors) {
		r.end = copy(r.vectors[:], r.vectors[r.begin:r.end])
		r.begin = 0
	}
	// One is left for spill.
	if r.end-r.begin+len(c.Write) >= maxVectors {
		r.queue.Unpop()
		r.crowded = true
		if r.count == 0 {
			r.fail(fmt.Errorf("receive buffer in %d pieces, want fewer: %w", len(c.Write), virtio.ErrBroken))
		}
		return false
	}
	r.spin.woken()
	setVectors(r.vectors[r.end:], c.Write)
	r.end += len(c.Write)
	r.room += int(c.WriteLen)
	r.count++
	return true
}

// starve waits a little for a buffer and then asks the driver for a kick when it
// gives some. It tells whether the driver has done so meanwhile. Frames that come
// before the kick find it asleep and do not have it wait again.
func (r *receiver) starve() bool {
	if r.failed {
		return false
	}
	r.queue.Notify()
	if !r.spin.asleep() {
		if r.keep(r.spin.pop(r.queue, r.spare())) || r.failed {
			return !r.failed
		}
		r.spin.sleeps()
	}
	more, err := r.queue.EnableKicks()
	if err != nil {
		r.fail(err)
		return false
	}
	if more {
		r.queue.DisableKicks()
	}
	return more
}
