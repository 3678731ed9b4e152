package blk

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/internal/testenv"
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

// warnings collects what a device warns about.
type warnings struct {
	mu   sync.Mutex
	list []error
}

func (w *warnings) add(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, err)
}

func (w *warnings) all() []error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]error(nil), w.list...)
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
