package blk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"golang.org/x/sys/unix"
)

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
		var w virtiotest.Warnings
		c := Config{Path: base, Overlay: filepath.Join(dir, "o"), Warn: w.Add, engine: e}
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
		if list := w.All(); len(list) != 1 || !errors.Is(list[0], unix.ENOSPC) || !strings.Contains(list[0].Error(), c.Overlay) {
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
	var w virtiotest.Warnings
	c := Config{Path: base, Overlay: overlayFor(t), Warn: w.Add}
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
