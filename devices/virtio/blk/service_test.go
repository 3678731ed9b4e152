package blk

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

// job is a request that is prepared for a queue.
type job struct {
	head   uint16
	data   memory.GPA
	status memory.GPA
}

// prepare makes the chain of a read or write of n bytes.
func (d *disk) prepare(q *virtiotest.Queue, kind uint32, sector uint64, n int) job {
	j := job{data: d.Memory.Alloc(uint64(n), 4096), status: d.Memory.Put([]byte{0xff})}
	j.head = q.Chain(
		virtiotest.Buffer{GPA: d.Memory.Put(header(kind, sector)), Len: headerSize},
		virtiotest.Buffer{GPA: j.data, Len: uint32(n), Write: kind == typeIn},
		virtiotest.Buffer{GPA: j.status, Len: statusSize, Write: true},
	)
	return j
}

// TestStopUnderLoad stops the device while it has many requests: those that it
// took are answered, and the others are later.
func TestStopUnderLoad(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		for _, noInline := range []bool{false, true} {
			path, contents := makeImage(t, 4<<20)
			const size, jobs = 64 << 10, 64
			mem := virtiotest.NewMemory(t, 64<<20)
			d := newDiskWith(t, Config{Path: path, Queues: 2, engine: e, noInline: noInline}, virtiotest.Options{Memory: mem})
			for range 3 {
				work := make([][]job, len(d.Queues))
				for i, q := range d.Queues {
					for n := range jobs {
						j := d.prepare(q, typeIn, uint64(n)*size/SectorSize, size)
						work[i] = append(work[i], j)
						q.Publish(j.head)
					}
					q.Kick()
				}
				d.Stop()
				for i := range d.Queues {
					if s := d.Device(i).Save(); s.Next != s.Used {
						t.Fatalf("stopped with %d requests in flight", s.Next-s.Used)
					}
				}
				d.Resume()
				for i, q := range d.Queues {
					for range jobs {
						q.Wait()
					}
					for n, j := range work[i] {
						if s := d.Memory.Get(j.status, 1)[0]; s != 0 {
							t.Fatalf("status %d", s)
						}
						if !bytes.Equal(d.Memory.Get(j.data, size), contents[n*size:(n+1)*size]) {
							t.Fatalf("wrong data")
						}
					}
				}
			}
		}
	})
}

// TestLimits tests with a clock of its own that no more goes through than
// allowed, and that it goes on when the time has come.
func TestLimits(t *testing.T) {
	for _, test := range []struct {
		name  string
		limit limit.Config
	}{
		{"operations", limit.Config{Operations: limit.Rate{PerSecond: 100, Burst: 5}}},
		{"bandwidth", limit.Config{Bandwidth: limit.Rate{PerSecond: 100 * 4096, Burst: 5 * 4096}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path, _ := makeImage(t, 64<<10)
			var at, asked atomic.Int64
			now := func() time.Time {
				asked.Add(1)
				return time.Unix(1000, at.Load())
			}
			d := newDisk(t, Config{Path: path, Limit: test.limit, now: now})
			q := d.Queues[0]
			for range 9 {
				q.Publish(d.prepare(q, typeIn, 8, 4096).head)
			}
			q.Kick()
			// refused waits until the limiter has been asked a few
			// times more, in vain.
			refused := func(want uint16) {
				t.Helper()
				deadline := time.Now().Add(virtiotest.Patience)
				for q.UsedIndex() != want && time.Now().Before(deadline) {
				}
				for from := asked.Load(); asked.Load() < from+3 && time.Now().Before(deadline); {
				}
				if got := q.UsedIndex(); got != want {
					t.Fatalf("%d requests went through, want %d", got, want)
				}
			}
			refused(5)
			at.Add(int64(20 * time.Millisecond))
			refused(7)
			d.Stop()
			at.Add(int64(10 * time.Millisecond))
			d.Resume()
			refused(8)
			at.Add(int64(time.Second))
			for range 9 {
				q.Wait()
			}
		})
	}
}

// TestChangeLimit tests that another limit holds for those, too, who wait for the old
// one, which would be for hours.
func TestChangeLimit(t *testing.T) {
	path, _ := makeImage(t, 64<<10)
	d := newDisk(t, Config{Path: path, Limit: limit.Config{Bandwidth: limit.Rate{PerSecond: 1, Burst: 1}}})
	q := d.Queues[0]
	for range 9 {
		q.Publish(d.prepare(q, typeIn, 8, 4096).head)
	}
	q.Kick()
	q.Wait() // the one that the burst lets through
	if err := d.device.ChangeLimit(limit.Change{Operations: &limit.Rate{Burst: 1}}); err == nil {
		t.Error("a burst without a rate went through")
	}
	if err := d.device.ChangeLimit(limit.Change{Bandwidth: &limit.Rate{}}); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		q.Wait()
	}
}

// TestInterrupts tests that a driver that waits for interrupts gets them also
// from requests that blocked, many at once.
func TestInterrupts(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		path, _ := makeImage(t, 1<<20)
		for _, without := range []uint64{0, 1 << 29} {
			d := newDiskWith(t, Config{Path: path, ReadOnly: true, engine: e, noInline: true}, virtiotest.Options{Without: without})
			q := d.Queues[0]
			for round := range 20 {
				n := 1 + round*4
				for i := range n {
					q.Publish(d.prepare(q, typeIn, uint64(i), 512).head)
				}
				q.Kick()
				for range n {
					q.Wait()
				}
			}
		}
	})
}

// TestLargeRequest tests requests that are longer than what may be handed over,
// and one of as many buffers as there may be.
func TestLargeRequest(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		const size = 80 << 20
		path, contents := makeImage(t, size)
		mem := virtiotest.NewMemory(t, 256<<20)
		d := newDiskWith(t, Config{Path: path, engine: e}, virtiotest.Options{Memory: mem})
		q := d.Queues[0]
		var jobs []job
		for range 2 {
			j := d.prepare(q, typeIn, 0, size)
			jobs = append(jobs, j)
			q.Publish(j.head)
		}
		q.Kick()
		for range jobs {
			q.Wait()
		}
		for _, j := range jobs {
			if !bytes.Equal(mem.Get(j.data, size), contents) {
				t.Error("wrong data")
			}
		}
		pieces := []virtiotest.Buffer{{GPA: mem.Put(header(typeIn, 0)), Len: headerSize}}
		at := mem.Alloc(1<<20, 4096)
		for i := range 1022 {
			pieces = append(pieces, virtiotest.Buffer{GPA: at + memory.GPA(i*512), Len: 512, Write: true})
		}
		pieces = append(pieces, virtiotest.Buffer{GPA: mem.Put([]byte{0xff}), Len: 1, Write: true})
		q.Publish(q.IndirectChain(pieces...))
		q.Kick()
		if _, written := q.Wait(); written != 1022*512+1 {
			t.Errorf("%d bytes written, want %d", written, 1022*512+1)
		}
		if !bytes.Equal(mem.Get(at, 1022*512), contents[:1022*512]) {
			t.Error("wrong data in small pieces")
		}
	})
}

// TestWholeQueueInFlight hands over as many requests as the queue has
// descriptors, each in an indirect table.
func TestWholeQueueInFlight(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		const size = 128 << 10
		path, contents := makeImage(t, size)
		mem := virtiotest.NewMemory(t, 64<<20)
		d := newDiskWith(t, Config{Path: path, Direct: true, engine: e}, virtiotest.Options{Memory: mem})
		q := d.Queues[0]
		at := mem.Alloc(size, 4096)
		for q.Free() > 0 {
			q.Publish(q.IndirectChain(
				virtiotest.Buffer{GPA: mem.Put(header(typeIn, 0)), Len: headerSize},
				virtiotest.Buffer{GPA: at, Len: size, Write: true},
				virtiotest.Buffer{GPA: mem.Put([]byte{0xff}), Len: statusSize, Write: true}))
		}
		q.Kick()
		for range QueueSize {
			if _, written := q.Wait(); written != size+statusSize {
				t.Errorf("%d bytes written, want %d", written, size+statusSize)
			}
		}
		if !bytes.Equal(mem.Get(at, size), contents) {
			t.Error("wrong data")
		}
	})
}

// TestUnaligned tests buffers and sectors that direct I/O does not take.
func TestUnaligned(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		path, contents := makeImage(t, 64<<10)
		d := newDisk(t, Config{Path: path, Direct: true, engine: e})
		q := d.Queues[0]
		data := pattern(4096, 8)
		at := d.Memory.Alloc(8192, 4096)
		transfer := func(kind uint32, skew memory.GPA, sector uint64) byte {
			status := d.Memory.Put([]byte{0xff})
			q.Publish(q.Chain(
				virtiotest.Buffer{GPA: d.Memory.Put(header(kind, sector)), Len: headerSize},
				virtiotest.Buffer{GPA: at + skew, Len: 4096, Write: kind == typeIn},
				virtiotest.Buffer{GPA: status, Len: statusSize, Write: true},
			))
			q.Kick()
			q.Wait()
			return d.Memory.Get(status, 1)[0]
		}
		for _, skew := range []memory.GPA{0, 1, 3, 256, 512} {
			for _, sector := range []uint64{8, 11} {
				d.Memory.Set(at+skew, data)
				if s := transfer(typeOut, skew, sector); s != 0 {
					t.Fatalf("write at skew %d, sector %d: status %d", skew, sector, s)
				}
				copy(contents[sector*512:], data)
				d.Memory.Set(at+skew, make([]byte, 4096))
				if s := transfer(typeIn, skew, sector); s != 0 {
					t.Fatalf("read at skew %d, sector %d: status %d", skew, sector, s)
				}
				if !bytes.Equal(d.Memory.Get(at+skew, 4096), data) {
					t.Fatalf("read at skew %d, sector %d: wrong data", skew, sector)
				}
			}
		}
		d.expect(0, contents)
	})
}

func TestDirtyBitmap(t *testing.T) {
	path, _ := makeImage(t, 64<<10)
	d := newDisk(t, Config{Path: path})
	q := d.Queues[0]
	j := d.prepare(q, typeIn, 0, 12<<10)
	d.Memory.Dirty().Drain(make([]uint64, d.Memory.Size()/memory.PageSize/64))
	q.Publish(j.head)
	q.Kick()
	q.Wait()
	for i := range memory.GPA(3) {
		if !d.Memory.Dirty().Test(uint64(j.data/memory.PageSize + i)) {
			t.Errorf("page %d of the data is not dirty", i)
		}
	}
	if !d.Memory.Dirty().Test(uint64(j.status / memory.PageSize)) {
		t.Error("the status is not dirty")
	}
}

func TestNoAllocations(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		for _, noInline := range []bool{false, true} {
			path, _ := makeImage(t, 64<<10)
			d := newDisk(t, Config{Path: path, engine: e, noInline: noInline})
			r := d.repeat(typeIn, 4096)
			if n := testing.AllocsPerRun(200, func() { r.do(8) }); n >= 1 {
				t.Errorf("noInline=%v: %v allocations a request", noInline, n)
			}
		}
	})
}

func TestSaveRestore(t *testing.T) {
	path, contents := makeImage(t, 64<<10)
	c := Config{Path: path, Serial: "one", Queues: 2, Limit: limit.Config{Operations: limit.Rate{PerSecond: 1000}}}
	d := newDisk(t, c)
	d.device.WriteConfig(configWriteback, []byte{0})
	d.expect(0, contents)
	copied := filepath.Join(t.TempDir(), "copy.img")
	c.Path = copied
	if err := os.WriteFile(copied, contents, 0o600); err != nil {
		t.Fatal(err)
	}
	other := newDevice(t, c)
	d.Move(other, func() {
		data, err := json.Marshal(d.device.Save())
		if err != nil {
			t.Fatal(err)
		}
		var s State
		if err := json.Unmarshal(data, &s); err != nil {
			t.Fatal(err)
		}
		if err := other.Restore(s); err != nil {
			t.Fatal(err)
		}
	})
	if got := d.Config(configWriteback, 1); got[0] != 0 {
		t.Error("the cache mode was lost")
	}
	d.expect(0, contents)
	d.mustSend(typeOut, 0, make([]byte, 512))
}

func TestRestoreRefuses(t *testing.T) {
	path, _ := makeImage(t, 64<<10)
	d := newDevice(t, Config{Path: path, Serial: "one"})
	good := d.Save()
	for _, test := range []struct {
		change func(*State)
		want   string
	}{
		{func(s *State) { s.Version = 0 }, "version"},
		{func(s *State) { s.Capacity += 512 }, "size in bytes is 65536, the saved machine had 66048"},
		{func(s *State) { s.Serial = "two" }, "serial number is one, the saved machine had two"},
		{func(s *State) { s.ReadOnly = true }, "read-only is false"},
		{func(s *State) { s.Queues = 2 }, "number of queues"},
		{func(s *State) { s.BlockSize = 4096 }, "block size"},
		{func(s *State) { s.Limit.Version = 9 }, "version 9"},
	} {
		s := good
		s.Writeback = false
		test.change(&s)
		if err := d.Restore(s); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Restore = %v, want %q in it", err, test.want)
		}
	}
	if d.Save() != good {
		t.Error("a restore that failed changed the device")
	}
}

// TestRingRefuses tests that the pool does what the ring does not take: its
// descriptor stands for something else.
func TestRingRefuses(t *testing.T) {
	if !hasRing(t) {
		testenv.Lacks(t, "the host has no io_uring")
	}
	path, contents := makeImage(t, 1<<20)
	device := newDevice(t, Config{Path: path, engine: engineRing, noInline: true})
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(event)
	if err := unix.Dup3(event, device.services[0].ring.fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	d := &disk{virtiotest.Start(t, device, virtiotest.Options{}), t, device}
	q := d.Queues[0]
	var jobs []job
	for i := range 16 {
		jobs = append(jobs, d.prepare(q, typeIn, uint64(i)*8, 4096))
		q.Publish(jobs[i].head)
	}
	q.Kick()
	for range jobs {
		q.Wait()
	}
	for i, j := range jobs {
		if !bytes.Equal(d.Memory.Get(j.data, 4096), contents[i*4096:(i+1)*4096]) {
			t.Errorf("request %d: wrong data", i)
		}
	}
}

// TestRingGivesUp tests the results of the ring that are none of the disk.
func TestRingGivesUp(t *testing.T) {
	path, contents := makeImage(t, 8192)
	d := newDevice(t, Config{Path: path, engine: enginePool})
	s := d.services[0]
	s.allocate(1)
	for _, errno := range []unix.Errno{unix.EAGAIN, unix.EINTR, unix.ECANCELED} {
		r := s.free[0]
		data := make([]byte, 4096)
		r.chain.Write, r.chain.WriteLen = []virtio.Buffer{{Data: data}}, 4097
		r.transfer(d, workRead, 8, 4096)
		s.returned(r, -int32(errno))
		s.await()
		got := s.pool.collect(nil)
		if len(got) != 1 || got[0].r != r || got[0].errno != 0 || !bytes.Equal(data, contents[4096:]) {
			t.Errorf("%v: %v, or wrong data", errno, got)
		}
		r.done = 0
	}
}
