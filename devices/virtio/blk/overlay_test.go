package blk

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"golang.org/x/sys/unix"
)

// makeBase makes an image of n bytes that nobody may write, and checks at the
// end of the test that nobody did.
func makeBase(t testing.TB, n int) (path string, contents []byte) {
	t.Helper()
	path, contents = makeImage(t, n)
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	before := sha256.Sum256(contents)
	t.Cleanup(func() {
		now, err := os.ReadFile(path)
		if err != nil || sha256.Sum256(now) != before {
			t.Errorf("the base was written: %v", err)
		}
	})
	return path, contents
}

// overlayFor is the path of an overlay that does not exist.
func overlayFor(t testing.TB) string { return filepath.Join(t.TempDir(), "disk.overlay") }

// kill gives up a device as a process that is killed does: without what
// Close does for the overlay.
func kill(t testing.TB, d *Device) {
	t.Helper()
	d.overlay.unkept = true
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// anotherBoot makes an overlay look as if the host had been booted since it was
// open.
func anotherBoot(t testing.TB, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(strings.Repeat("b", len(bootID{}))), sessionAt); err != nil {
		t.Fatal(err)
	}
}

// forget drops a file from the page cache.
func forget(t testing.TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
		t.Fatal(err)
	}
}

// session is a started device that may be ended within the test.
func session(t testing.TB, c Config) *disk {
	t.Helper()
	device, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return &disk{virtiotest.Start(t, device, virtiotest.Options{}), t, device}
}

// end closes it.
func (d *disk) end() {
	d.t.Helper()
	d.Stop()
	if err := d.device.Close(); err != nil {
		d.t.Fatal(err)
	}
}

// TestOverlay goes through all ways to write, and finds the same after the
// overlay was closed and opened.
func TestOverlay(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		for _, c := range []Config{{}, {Direct: true}, {noInline: true}} {
			const size = 1<<20 + 3*SectorSize // the last cluster is not whole
			base, contents := makeBase(t, size)
			c.Path, c.Overlay, c.engine = base, overlayFor(t), e
			d := session(t, c)
			d.expect(0, contents)
			forget(t, base)
			write := func(sector uint64, n int) {
				t.Helper()
				data := pattern(n, sector)
				d.mustSend(typeOut, sector, data)
				copy(contents[sector*SectorSize:], data)
				d.expect(0, contents)
				forget(t, base)
			}
			write(3, 512)                    // in the middle of a cluster
			write(5, 4096)                   // the same one again
			write(128, clusterSize)          // a whole one
			write(300, 3*clusterSize)        // parts at both ends
			write(0, 4*clusterSize)          // some there, some not
			write(size/SectorSize-1, 512)    // the last sector
			write(1<<20/SectorSize-1, 2*512) // into the last cluster
			d.mustSend(typeWriteZeroes, 0, segment(1, 2, 0), segment(1000, 200, 1), segment(1800, 128, 0))
			clear(contents[1*512 : 3*512])
			clear(contents[1000*512 : 1200*512])
			clear(contents[1800*512 : 1928*512])
			d.expect(0, contents)
			// Two whole clusters, and parts of two that are in the base:
			// those are left alone.
			d.mustSend(typeDiscard, 0, segment(1290, 370, 0))
			clear(contents[1408*512 : 1536*512])
			clear(contents[1290*512 : 1408*512])
			got, _ := d.read(1290, 370*512)
			copy(contents[1290*512:], got[:118*512]) // may be either
			copy(contents[1536*512:], got[246*512:])
			d.expect(0, contents)
			d.mustSend(typeFlush, 0)
			d.end()
			d = session(t, c)
			d.expect(0, contents)
			write(17, 512)
			d.end()
			if info, err := os.Stat(c.Overlay); err != nil || info.Mode() != 0o600 {
				t.Errorf("mode of the overlay: %v, %v", info.Mode(), err)
			}
		}
	})
}

// TestOverlayDiscard: what is discarded in whole clusters does not show the base
// again, whether it was in the overlay or not, and takes no space.
func TestOverlayDiscard(t *testing.T) {
	const size = 16 * clusterSize
	base, contents := makeBase(t, size)
	c := Config{Path: base, Overlay: overlayFor(t)}
	d := session(t, c)
	const sectors = clusterSize / SectorSize
	d.mustSend(typeOut, 0, pattern(4*clusterSize, 5))
	before := blocks(t, c.Overlay)
	d.mustSend(typeDiscard, 0, segment(0, 8*sectors, 0))
	if freed := before - blocks(t, c.Overlay); freed < 4*sectors {
		t.Errorf("discarding %d sectors of the overlay freed %d", 4*sectors, freed)
	}
	clear(contents[:8*clusterSize])
	d.expect(0, contents)
	for _, s := range []struct{ sector, n uint32 }{
		{8*sectors + 1, 10},             // within a cluster
		{9*sectors - 5, 10},             // over a border
		{9 * sectors, sectors - 1},      // all but the end
		{10*sectors + 1, sectors - 1},   // all but the start
		{11*sectors + 1, 2*sectors - 2}, // two clusters, neither of them whole
	} {
		d.mustSend(typeDiscard, 0, segment(uint64(s.sector), s.n, 0))
	}
	d.expect(0, contents)
	d.mustSend(typeDiscard, 0, segment(15*sectors, sectors, 0)) // up to the end of the disk
	clear(contents[15*clusterSize:])
	d.end()
	d = session(t, c)
	d.expect(0, contents)
	d.end()
}

// TestOverlaySparse: zeros of the base that are copied take no space.
func TestOverlaySparse(t *testing.T) {
	base, _ := makeImage(t, 0)
	if err := os.Truncate(base, 64<<20); err != nil {
		t.Fatal(err)
	}
	d := newDisk(t, Config{Path: base, Overlay: overlayFor(t)})
	for i := range uint64(100) {
		d.mustSend(typeOut, i*2048/2, pattern(4096, i))
	}
	d.mustSend(typeFlush, 0)
	if got := blocks(t, d.device.config.Overlay); got > 100*8+100 {
		t.Errorf("100 writes of 8 sectors take %d", got)
	}
}

// TestOverlaysOnOneBase: overlays do not see each other's writes.
func TestOverlaysOnOneBase(t *testing.T) {
	base, contents := makeBase(t, 4*clusterSize)
	a := newDisk(t, Config{Path: base, Overlay: overlayFor(t)})
	b := newDisk(t, Config{Path: base, Overlay: overlayFor(t)})
	e := newDisk(t, Config{Path: base, Scratch: NewScratch(t.TempDir())})
	plain := newDisk(t, Config{Path: base, ReadOnly: true})
	wants := map[*disk][]byte{}
	for i, d := range []*disk{a, b, e} {
		want := bytes.Clone(contents)
		copy(want[100*512:], pattern(8192, uint64(10+i)))
		d.mustSend(typeOut, 100, want[100*512:116*512])
		d.mustSend(typeFlush, 0)
		wants[d] = want
	}
	wants[plain] = contents
	for d, want := range wants {
		d.expect(0, want)
	}
}

// TestOverlayOnBlockDevice has a loop device as the base.
func TestOverlayOnBlockDevice(t *testing.T) {
	file, contents := makeImage(t, 1<<20)
	path := loopDevice(t, file)
	c := Config{Path: path, Overlay: overlayFor(t)}
	d := session(t, c)
	if _, err := New(Config{Path: path}); !errors.Is(err, ErrInUse) {
		t.Errorf("writer of the base: %v", err)
	}
	want := bytes.Clone(contents)
	copy(want[1000*512:], pattern(100<<10, 3))
	d.mustSend(typeOut, 1000, want[1000*512:1200*512])
	d.expect(0, want)
	d.end()
	d = session(t, c)
	d.expect(0, want)
	d.end()
	other, _ := makeImage(t, 1<<20)
	c.Path = loopDevice(t, other)
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), path+" (a block device") {
		t.Errorf("another base: %v", err)
	}
	if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, contents) {
		t.Errorf("the base was written: %v", err)
	}
}

func TestOverlayNoAllocations(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		for _, noInline := range []bool{false, true} {
			path, _ := makeImage(t, 512*clusterSize)
			d := newDisk(t, Config{Path: path, Overlay: overlayFor(t), engine: e, noInline: noInline})
			d.mustSend(typeOut, 0, pattern(clusterSize, 3))
			const sectors = clusterSize / SectorSize
			for _, test := range []struct {
				name   string
				kind   uint32
				size   int
				sector func(n uint64) uint64
			}{
				{"read of the base", typeIn, 4096, func(uint64) uint64 { return 1000 * sectors / 2 }},
				{"read of the overlay", typeIn, 4096, func(uint64) uint64 { return 0 }},
				{"read of both", typeIn, 4096, func(uint64) uint64 { return sectors - 3 }},
				{"second write", typeOut, 4096, func(uint64) uint64 { return 7 }},
				{"first write", typeOut, 4096, func(n uint64) uint64 { return (n + 2) * sectors }},
				{"flush", typeFlush, 0, func(uint64) uint64 { return 0 }},
			} {
				r := d.repeat(test.kind, test.size)
				n := uint64(0)
				got := testing.AllocsPerRun(100, func() {
					r.do(test.sector(n))
					n++
				})
				if got >= 1 {
					t.Errorf("noInline=%v: %s: %v allocations", noInline, test.name, got)
				}
			}
		}
	})
}
