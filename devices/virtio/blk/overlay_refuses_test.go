package blk

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
)

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
