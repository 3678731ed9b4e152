package blk

import (
	"bytes"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"golang.org/x/sys/unix"
)

// TestStartFails has a queue that cannot be served: what was opened for it is
// closed once, since whoever opens something next gets the same descriptors.
func TestStartFails(t *testing.T) {
	path, _ := makeImage(t, 64<<10)
	d := newDevice(t, Config{Path: path, engine: enginePool})
	mem := virtiotest.NewMemory(t, 1<<20)
	q, err := virtio.NewQueue(mem.Guest, func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	event := d.services[0].pool.event
	d.services[0].pool.event = -1
	err = d.services[0].start(virtio.Driver{Mem: mem.Guest}, q)
	d.services[0].pool.event = event
	if err == nil {
		t.Fatal("no error for a descriptor that is not open")
	}
	var fds []int
	for range 4 {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	d.Stop()
	for _, fd := range fds {
		if err := unix.Close(fd); err != nil {
			t.Errorf("somebody else's descriptor %d was closed: %v", fd, err)
		}
	}
}

// TestHandedOverRanges has many requests that each clear a whole disk again and
// again: so few of them are taken at a time that Stop does not wait for long,
// even where the file system has nothing better than to write zeros.
func TestHandedOverRanges(t *testing.T) {
	const size, requests = 16 << 20, 32
	for _, kind := range []uint32{typeDiscard, typeWriteZeroes} {
		path, _ := makeImage(t, size)
		d := newDevice(t, Config{Path: path, engine: enginePool})
		mem := virtiotest.NewMemory(t, 1<<20)
		q, err := virtio.NewQueue(mem.Guest, func() {})
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
		guest := virtiotest.NewQueue(t, mem, QueueSize)
		driver := virtio.Driver{Mem: mem.Guest, Features: d.Features()}
		if err := q.Enable(guest.Config(), driver.Features); err != nil {
			t.Fatal(err)
		}
		segments := bytes.Repeat(segment(0, size/SectorSize, 0), maxSegments)
		for range requests {
			guest.Publish(guest.Chain(
				virtiotest.Buffer{GPA: mem.Put(append(header(kind, 0), segments...)), Len: uint32(headerSize + len(segments))},
				virtiotest.Buffer{GPA: mem.Put([]byte{0xff}), Len: statusSize, Write: true}))
		}
		// What the loop does, up to where it would wait.
		s := d.services[0]
		s.queue, s.driver = q, driver
		s.allocate(QueueSize)
		why, err := s.take()
		if err != nil || why != pauseFull || s.inFlight > 1+maxHandedOver/(maxSegments*size) {
			t.Errorf("type %d: %d of %d requests taken, pause %d, %v", kind, s.inFlight, requests, why, err)
		}
		for s.inFlight > 0 {
			s.await()
			s.collect()
		}
		if s.handedOver != 0 {
			t.Errorf("type %d: %d bytes are left with nobody", kind, s.handedOver)
		}
	}
}

// TestLimitOnZeroes: zeros may have to be written, so they count as written.
// What is discarded does not.
func TestLimitOnZeroes(t *testing.T) {
	path, _ := makeImage(t, 64<<10)
	rate := limit.Rate{PerSecond: 1 << 20, Burst: 1 << 20}
	d := newDisk(t, Config{
		Path: path, Limit: limit.Config{Bandwidth: rate}, now: func() time.Time { return time.Unix(1000, 0) },
	})
	d.mustSend(typeDiscard, 0, segment(0, 16, 0))
	d.mustSend(typeWriteZeroes, 0, segment(0, 8, 0), segment(16, 8, 1))
	if got, want := d.device.limiter.Save().Bandwidth.Tokens, int64(1<<20-8192); got != want {
		t.Errorf("%d bytes are left, want %d", got, want)
	}
}
