package blk

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/memory"
)

// Everything that moves data is tested with both engines.
var engines = []struct {
	name   string
	engine engine
}{{"pool", enginePool}, {"ring", engineRing}}

// eachEngine runs a test with each engine that the host has.
func eachEngine(t *testing.T, f func(t *testing.T, e engine)) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			if e.engine == engineRing && !hasRing(t) {
				testenv.Lacks(t, "the host has no io_uring")
			}
			f(t, e.engine)
		})
	}
}

func hasRing(t testing.TB) bool {
	r, err := newRing(8)
	if err != nil {
		return false
	}
	if err := r.close(); err != nil {
		t.Error(err)
	}
	return true
}

// makeImage makes an image of n bytes that are not zero, in a directory of the
// test.
func makeImage(t testing.TB, n int) (path string, contents []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk.img")
	contents = pattern(n, 1)
	if err := os.WriteFile(path, contents, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, contents
}

// pattern is n bytes, none of them zero, that are different for each seed.
func pattern(n int, seed uint64) []byte {
	p := make([]byte, n)
	x := seed*0x9e3779b97f4a7c15 | 1
	for i := range p {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		p[i] = byte(x) | 1
	}
	return p
}

// newDevice makes a device that is closed at the end of the test.
func newDevice(t testing.TB, c Config) *Device {
	t.Helper()
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// disk is a started device and its driver.
type disk struct {
	*virtiotest.Driver
	t      testing.TB
	device *Device
}

func newDisk(t testing.TB, c Config) *disk { return newDiskWith(t, c, virtiotest.Options{}) }

func newDiskWith(t testing.TB, c Config, o virtiotest.Options) *disk {
	t.Helper()
	device := newDevice(t, c)
	return &disk{virtiotest.Start(t, device, o), t, device}
}

// startDisk starts a device that is there.
func startDisk(t testing.TB, device *Device) *disk {
	t.Helper()
	return &disk{virtiotest.Start(t, device, virtiotest.Options{}), t, device}
}

// header is that of a request.
func header(kind uint32, sector uint64) []byte {
	h := make([]byte, headerSize)
	binary.LittleEndian.PutUint32(h, kind)
	binary.LittleEndian.PutUint64(h[8:], sector)
	return h
}

// read reads n bytes.
func (d *disk) read(sector uint64, n int) ([]byte, status) {
	d.t.Helper()
	answer, written := d.Queues[0].Do([][]byte{header(typeIn, sector)}, n, statusSize)
	s := status(answer[1][0])
	if s == statusOK && written != uint32(n)+statusSize {
		d.t.Errorf("device says it wrote %d bytes, want %d", written, n+statusSize)
	}
	return answer[0], s
}

// expect reads and compares.
func (d *disk) expect(sector uint64, want []byte) {
	d.t.Helper()
	got, s := d.read(sector, len(want))
	if s != statusOK {
		d.t.Fatalf("read of %d bytes at sector %d: status %d", len(want), sector, s)
	}
	if !bytes.Equal(got, want) {
		d.t.Fatalf("read of %d bytes at sector %d: wrong data", len(want), sector)
	}
}

// send makes a request that returns nothing but a status.
func (d *disk) send(kind uint32, sector uint64, data ...[]byte) status {
	d.t.Helper()
	answer, written := d.Queues[0].Do(append([][]byte{header(kind, sector)}, data...), statusSize)
	if written != statusSize {
		d.t.Errorf("device says it wrote %d bytes, want %d", written, statusSize)
	}
	return status(answer[0][0])
}

func (d *disk) mustSend(kind uint32, sector uint64, data ...[]byte) {
	d.t.Helper()
	if s := d.send(kind, sector, data...); s != statusOK {
		d.t.Fatalf("request of type %d: status %d", kind, s)
	}
}

// segment is one of a discard or write-zeroes request.
func segment(sector uint64, count, flags uint32) []byte {
	p := make([]byte, segmentSize)
	binary.LittleEndian.PutUint64(p, sector)
	binary.LittleEndian.PutUint32(p[8:], count)
	binary.LittleEndian.PutUint32(p[12:], flags)
	return p
}

// repeater makes one request again and again. It allocates nothing, unlike the
// driver, which must not use the queue any more.
type repeater struct {
	t      testing.TB
	q      *virtiotest.Queue
	mem    *memory.Guest
	header memory.GPA
	status memory.GPA
	head   uint16
}

// repeat prepares a read or write of n bytes, or a flush with none, on the first
// queue.
func (d *disk) repeat(kind uint32, n int) *repeater {
	r := &repeater{t: d.t, q: d.Queues[0], mem: d.Memory.Guest, header: d.Memory.Put(header(kind, 0)), status: d.Memory.Put([]byte{0xff})}
	buffers := []virtiotest.Buffer{{GPA: r.header, Len: headerSize}}
	if n > 0 {
		buffers = append(buffers, virtiotest.Buffer{GPA: d.Memory.Alloc(uint64(n), 4096), Len: uint32(n), Write: kind == typeIn})
	}
	r.head = r.q.Chain(append(buffers, virtiotest.Buffer{GPA: r.status, Len: statusSize, Write: true})...)
	r.do(0)
	return r
}

// do makes the request, at a sector.
func (r *repeater) do(sector uint64) {
	if err := r.mem.PutUint64(r.header+8, sector); err != nil {
		r.t.Fatal(err)
	}
	i := r.q.AvailIndex()
	r.q.SetAvail(i, r.head)
	r.q.SetAvailIndex(i + 1)
	r.q.Kick()
	for r.q.UsedIndex() != i+1 {
		runtime.Gosched() // AllocsPerRun leaves but one processor
	}
	if word, err := r.mem.View(r.status, 1); err != nil || word[0] != 0 {
		r.t.Fatalf("request failed: %v, %v", word, err)
	}
}

// client makes requests on a queue of its own, one at a time: one for each
// goroutine. All of its memory is there from the start.
type client struct {
	t                    testing.TB
	q                    *virtiotest.Queue
	mem                  *virtiotest.Memory
	header, data, status memory.GPA
}

// clientData is the most that a request of a client has.
const clientData = 256 << 10

func newClient(d *disk, queue int) *client {
	m := d.Memory
	return &client{d.t, d.Queues[queue], m, m.Alloc(headerSize, 16), m.Alloc(clientData, 4096), m.Alloc(1, 1)}
}

// do makes a request that the device answers with OK. It fills data if it is a
// read, and sends it otherwise.
func (c *client) do(kind uint32, sector uint64, data []byte) {
	c.mem.Set(c.header, header(kind, sector))
	buffers := []virtiotest.Buffer{{GPA: c.header, Len: headerSize}}
	if len(data) > 0 {
		buffers = append(buffers, virtiotest.Buffer{GPA: c.data, Len: uint32(len(data)), Write: kind == typeIn})
		if kind != typeIn {
			c.mem.Set(c.data, data)
		}
	}
	c.q.Publish(c.q.Chain(append(buffers, virtiotest.Buffer{GPA: c.status, Len: statusSize, Write: true})...))
	c.q.Kick()
	c.q.Wait()
	if s := c.mem.Get(c.status, 1)[0]; s != 0 {
		c.t.Errorf("request of type %d at sector %d: status %d", kind, sector, s)
	}
	if kind == typeIn {
		copy(data, c.mem.Get(c.data, len(data)))
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func writeFile(t testing.TB, path string, p []byte) {
	t.Helper()
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
}
