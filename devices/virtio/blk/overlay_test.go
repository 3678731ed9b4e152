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

// change writes bytes into a file.
func change(t testing.TB, path string, offset int64, p ...byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, offset); err != nil {
		t.Fatal(err)
	}
}

func TestOverlayRefuses(t *testing.T) {
	const size = 4 * clusterSize
	base, _ := makeImage(t, size)
	made := func() string {
		path := overlayFor(t)
		d, err := New(Config{Path: base, Overlay: path})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		return path
	}
	damaged := func(offset int64, p ...byte) string {
		path := made()
		change(t, path, offset, p...)
		return path
	}
	cut := made()
	if err := os.Truncate(cut, clusterSize+100); err != nil {
		t.Fatal(err)
	}
	both := damaged(int64(layoutFor(size).durableAt), 0x13)
	anotherBoot(t, both)
	short, _ := makeImage(t, 100)
	other, _ := makeImage(t, size)
	larger, _ := makeImage(t, 2*size)
	l := layoutFor(size)
	for _, test := range []struct {
		name   string
		config Config
		want   string
	}{
		{"read-only", Config{Path: base, ReadOnly: true, Overlay: made()}, "leave out one of them"},
		{"read-only and scratch", Config{Path: base, ReadOnly: true, Scratch: NewScratch("")}, "leave out one of them"},
		{"itself", Config{Path: base, Overlay: base}, "the overlay is the image itself"},
		{"a directory", Config{Path: base, Overlay: t.TempDir()}, "the overlay is no regular file"},
		{"a device", Config{Path: base, Overlay: "/dev/null"}, "the overlay is no regular file"},
		{"no such folder", Config{Path: base, Overlay: "/nonexistent/x"}, "no such file"},
		{"no such folder, scratch", Config{Path: base, Scratch: NewScratch("/nonexistent")}, "no such file"},
		{"both", Config{Path: base, Overlay: overlayFor(t), Scratch: NewScratch("")}, "leave out one of them"},
		{"a raw image", Config{Path: base, Overlay: other}, "the file is no overlay"},
		{"a short file", Config{Path: base, Overlay: short}, "the file is no overlay"},
		{"another base", Config{Path: other, Overlay: made()}, "belongs to " + base},
		{"a base of another size", Config{Path: larger, Overlay: made()}, "(524288 bytes"},
		{"flipped bit", Config{Path: base, Overlay: damaged(headerInode, 0xff)}, "checksum"},
		{"later version", Config{Path: base, Overlay: damaged(headerVersion, 2)}, "version 2, this program knows 1"},
		{"cut", Config{Path: base, Overlay: cut}, "it has 65636 bytes, it must have 327680"},
		{"clusters behind the end", Config{Path: base, Overlay: damaged(int64(l.writtenAt), 0x10)}, "behind the end"},
		{"clusters behind the end, another boot", Config{Path: base, Overlay: both}, "behind the end"},
		{"durable clusters behind the end", Config{Path: base, Overlay: damaged(int64(l.durableAt)+4095, 0x80)}, "behind the end"},
		{"as an image", Config{Path: made()}, "the image is an overlay: give the image that it belongs to, " + base},
		{"as a base", Config{Path: made(), Overlay: overlayFor(t)}, "the image is an overlay"},
	} {
		t.Run(test.name, func(t *testing.T) {
			before, _ := os.ReadFile(test.config.Overlay)
			d, err := New(test.config)
			if err == nil {
				d.Close()
				t.Fatal("no error")
			}
			if after, _ := os.ReadFile(test.config.Overlay); !bytes.Equal(before, after) {
				t.Error("the file has changed")
			}
			for _, want := range []string{test.want, test.config.Path} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
	// Those that failed have freed base and overlay, and made nothing.
	newDevice(t, Config{Path: base})
	if _, err := openOverlay(Config{Scratch: NewScratch("")}, nil, maxOverlaid+SectorSize); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("overlay on a large disk: %v", err)
	}
}

// TestOverlayOfChangedBase: the base was written since the overlay was made.
func TestOverlayOfChangedBase(t *testing.T) {
	base, _ := makeImage(t, clusterSize)
	c := Config{Path: base, Overlay: overlayFor(t)}
	session(t, c).end()
	moved := base + ".moved"
	if err := os.Rename(base, moved); err != nil {
		t.Fatal(err)
	}
	c.Path = moved
	session(t, c).end()
	change(t, moved, 0, 1)
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "last written") {
		t.Errorf("overlay on a base that was written: %v", err)
	}
}

func TestOverlayLocks(t *testing.T) {
	base, _ := makeImage(t, clusterSize)
	c := Config{Path: base, Overlay: overlayFor(t)}
	first := session(t, c)
	if _, err := New(c); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "overlay of its own") {
		t.Errorf("second disk with the overlay: %v", err)
	}
	if _, err := New(Config{Path: base}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "give each an overlay") {
		t.Errorf("writer of the base: %v", err)
	}
	newDevice(t, Config{Path: base, ReadOnly: true})
	first.end()
	writable, _ := makeImage(t, clusterSize)
	newDevice(t, Config{Path: writable})
	overlay := overlayFor(t)
	if _, err := New(Config{Path: writable, Overlay: overlay}); !errors.Is(err, ErrInUse) {
		t.Errorf("overlay on an image that is written: %v", err)
	}
	if _, err := os.Stat(overlay); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an overlay was made for a base in use: %v", err)
	}
}

// TestOverlayMaking: an empty file becomes an overlay, and one whose making was
// interrupted is made to the end.
func TestOverlayMaking(t *testing.T) {
	base, contents := makeBase(t, clusterSize)
	c := Config{Path: base, Overlay: overlayFor(t)}
	if err := os.WriteFile(c.Overlay, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d := session(t, c)
	d.expect(0, contents)
	d.end()
	if err := os.Truncate(c.Overlay, overlayBlock); err != nil {
		t.Fatal(err)
	}
	d = session(t, c)
	d.expect(0, contents)
	d.mustSend(typeOut, 5, contents[:1024])
	copy(contents[5*512:], contents[:1024])
	d.end()
	d = session(t, c)
	d.expect(0, contents)
	d.end()
}

// TestOverlayGarbage: clusters that hold something else than their contents, from
// a session that was killed, are not shown. The base has data, or is a hole.
func TestOverlayGarbage(t *testing.T) {
	for _, hole := range []bool{false, true} {
		base, contents := makeImage(t, 4*clusterSize)
		if hole {
			clear(contents)
			writeFile(t, base, contents)
		}
		d := newDisk(t, Config{Path: base, Overlay: overlayFor(t)})
		if errno := writeAt(d.device.overlay.fd, pattern(4*clusterSize, 77), d.device.overlay.dataAt); errno != 0 {
			t.Fatal(errno)
		}
		d.expect(0, contents)
		data := pattern(512, 1)
		d.mustSend(typeOut, 3, data)
		copy(contents[3*512:], data)
		d.mustSend(typeWriteZeroes, 0, segment(130, 10, 0))
		clear(contents[130*512 : 140*512])
		d.mustSend(typeDiscard, 0, segment(256, 128, 0))
		clear(contents[256*512 : 384*512])
		d.expect(0, contents)
	}
}

// TestOverlayDurable: what was flushed, or written while every write must be
// durable, is there in the next boot of the host, although the process was
// killed; what was not is there in this one.
func TestOverlayDurable(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		for _, direct := range []bool{false, true} {
			base, contents := makeBase(t, 16*clusterSize)
			c := Config{Path: base, Overlay: overlayFor(t), Direct: direct, engine: e}
			var d *disk
			write := func(sector uint64) {
				data := pattern(4096, sector)
				d.mustSend(typeOut, sector, data)
				copy(contents[sector*512:], data)
			}
			again := func() {
				d.Stop()
				kill(t, d.device)
				d = session(t, c)
				d.expect(0, contents)
			}
			d = session(t, c)
			write(8)
			again()
			d.mustSend(typeFlush, 0) // of an earlier session
			d.Stop()
			kill(t, d.device)
			anotherBoot(t, c.Overlay)
			d = session(t, c)
			d.expect(0, contents)
			lost := bytes.Clone(contents)
			write(1024)
			again()
			anotherBoot(t, c.Overlay)
			contents = lost
			again()
			write(256)
			d.device.WriteConfig(configWriteback, []byte{0})
			write(264) // in a cluster of which no flush knows
			anotherBoot(t, c.Overlay)
			again()
			d.device.WriteConfig(configWriteback, []byte{0})
			write(128)
			d.mustSend(typeWriteZeroes, 0, segment(512, 9, 0))
			clear(contents[512*512 : 521*512])
			anotherBoot(t, c.Overlay)
			again()
			d.end()
		}
	})
}

// TestOverlayClosed: what was written is there in the next boot of the host when
// the disk was closed.
func TestOverlayClosed(t *testing.T) {
	base, contents := makeBase(t, 4*clusterSize)
	c := Config{Path: base, Overlay: overlayFor(t)}
	d := session(t, c)
	copy(contents, pattern(512, 3))
	d.mustSend(typeOut, 0, contents[:512])
	d.end()
	anotherBoot(t, c.Overlay)
	d = session(t, c)
	d.expect(0, contents)
	d.end()
}

func TestOverlayResize(t *testing.T) {
	base, _ := makeImage(t, clusterSize)
	d := newDevice(t, Config{Path: base, Overlay: overlayFor(t)})
	if err := os.Truncate(base, 2*clusterSize); err != nil {
		t.Fatal(err)
	}
	if err := d.Resize(); err == nil || !strings.Contains(err.Error(), "overlay") || d.Capacity() != clusterSize {
		t.Errorf("resize: %v, capacity %d", err, d.Capacity())
	}
}

// TestOverlayState: the guest cannot tell, and neither can a saved state.
func TestOverlayState(t *testing.T) {
	path, _ := makeImage(t, 1<<20)
	a := newDevice(t, Config{Path: path, Serial: "s", Overlay: overlayFor(t)})
	b := newDevice(t, Config{Path: path, Serial: "s", Scratch: NewScratch("")})
	copied, _ := makeImage(t, 1<<20)
	plain := newDevice(t, Config{Path: copied, Serial: "s"})
	space := func(d *Device) string {
		p := make([]byte, configSize)
		d.ReadConfig(0, p)
		return string(p)
	}
	for _, d := range []*Device{a, b} {
		if d.Save() != plain.Save() || d.Features() != plain.Features() || space(d) != space(plain) {
			t.Errorf("%+v, want %+v", d.Save(), plain.Save())
		}
		if err := d.Restore(plain.Save()); err != nil {
			t.Error(err)
		}
	}
}

// TestOverlayNoSpace fills the file system that the overlay is on.
func TestOverlayNoSpace(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		dir := t.TempDir()
		if err := unix.Mount("blk-test", dir, "tmpfs", 0, "size=1m"); err != nil {
			t.Skipf("a small file system cannot be mounted: %v", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		base, contents := makeBase(t, 8<<20)
		var w warnings
		c := Config{Path: base, Overlay: filepath.Join(dir, "o"), Warn: w.add, engine: e}
		d := newDisk(t, c)
		data := pattern(256<<10, 2)
		failed := 0
		for i := range uint64(8) {
			sector := i*2048 + i%2*8 // every second one copies at both ends
			switch s := d.send(typeOut, sector, data); s {
			case statusIOError:
				failed++
			default:
				copy(contents[sector*512:], data)
			}
		}
		if failed < 4 || failed == 8 {
			t.Errorf("%d of 8 writes of 256 KiB into 1 MiB failed", failed)
		}
		if most := int64(8-failed)*(256+64)<<10 + 16<<10; blocks(t, c.Overlay)*512 > most {
			t.Errorf("the overlay takes %d bytes after %d writes that failed, want at most %d", blocks(t, c.Overlay)*512, failed, most)
		}
		if list := w.all(); len(list) != 1 || !errors.Is(list[0], unix.ENOSPC) || !strings.Contains(list[0].Error(), c.Overlay) {
			t.Errorf("warnings %v, want one about ENOSPC and the overlay", list)
		}
		// What failed shows as it was, a flush is good, and when there is
		// room the disk goes on.
		d.expect(0, contents)
		d.mustSend(typeFlush, 0)
		d.mustSend(typeDiscard, 0, segment(0, 2048, 0))
		clear(contents[:1<<20])
		d.mustSend(typeOut, 6*2048+8, data)
		copy(contents[(6*2048+8)*512:], data)
		d.mustSend(typeFlush, 0)
		d.expect(0, contents)
	})
}

// TestOverlayFailedSync: after a sync that failed, nothing more is said to be
// durable, and the clusters of the time are not there in the next boot.
func TestOverlayFailedSync(t *testing.T) {
	base, contents := makeBase(t, 4*clusterSize)
	var w warnings
	c := Config{Path: base, Overlay: overlayFor(t), Warn: w.add}
	d := session(t, c)
	d.mustSend(typeOut, 0, pattern(512, 5))
	copy(contents, pattern(512, 5))
	d.mustSend(typeFlush, 0)
	d.mustSend(typeOut, 200, pattern(512, 6))
	o := d.device.overlay
	o.syncing.Lock()
	o.failed = unix.EIO // as syncNow would have left it
	o.syncing.Unlock()
	if errno := o.writeSession(bootID{}); errno != 0 {
		t.Fatal(errno)
	}
	for range 2 {
		if s := d.send(typeFlush, 0); s != statusIOError {
			t.Errorf("flush: status %d", s)
		}
	}
	if err := d.device.Sync(); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), c.Overlay) {
		t.Errorf("Sync: %v", err)
	}
	d.Stop()
	if err := d.device.Close(); !errors.Is(err, unix.EIO) {
		t.Errorf("Close: %v", err)
	}
	d = session(t, c)
	d.expect(0, contents)
	d.mustSend(typeFlush, 0)
	d.end()
}

// TestOverlaySyncFails has a descriptor that cannot be synced, and later can.
func TestOverlaySyncFails(t *testing.T) {
	p := newPresent(layoutFor(4 * clusterSize))
	if errno := p.sync(); errno != unix.EBADF {
		t.Errorf("sync of no file: %v", errno)
	}
	f, err := os.Create(overlayFor(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p.fd = int(f.Fd())
	if errno := p.sync(); errno != unix.EBADF {
		t.Errorf("sync after one that failed: %v", errno)
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
