package blk

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// TestHandedOver: a disk goes from one device to another, and back.
func TestHandedOver(t *testing.T) {
	for _, overlaid := range []bool{false, true} {
		path, contents := makeImage(t, 1<<20)
		c := Config{Path: path}
		if overlaid {
			c.Overlay = overlayFor(t)
		}
		source := newDisk(t, c)
		source.mustSend(typeOut, 0, pattern(4096, 7))
		copy(contents, pattern(4096, 7))

		inactive := c
		inactive.Inactive = true
		device := newDevice(t, inactive)
		if err := device.Activate(); !overlaid && !errors.Is(err, ErrInUse) {
			t.Fatalf("took a disk that another one has: %v", err)
		} else if overlaid && (err == nil || !strings.Contains(err.Error(), c.Overlay)) {
			t.Fatalf("took an overlay that another one has: %v", err)
		}
		source.Stop()
		if err := source.device.Deactivate(); err != nil {
			t.Fatal(err)
		}
		if err := device.Activate(); err != nil {
			t.Fatal(err)
		}
		if err := source.device.Activate(); err == nil {
			t.Fatal("took back a disk that another one has by now")
		}
		destination := startDisk(t, device)
		destination.expect(0, contents)
		destination.mustSend(typeOut, 16, pattern(4096, 8))
		copy(contents[16*SectorSize:], pattern(4096, 8))
		destination.Stop()
		if err := device.Deactivate(); err != nil {
			t.Fatal(err)
		}
		if err := source.device.Activate(); err != nil {
			t.Fatalf("take it back: %v", err)
		}
	}
}

// TestChangedMeanwhile: the image has another size when the guest comes.
func TestChangedMeanwhile(t *testing.T) {
	path, _ := makeImage(t, 1<<20)
	d := newDevice(t, Config{Path: path, Inactive: true})
	if err := os.Truncate(path, 2<<20); err != nil {
		t.Fatal(err)
	}
	if err := d.Activate(); err == nil || !strings.Contains(err.Error(), "2097152 bytes by now") {
		t.Errorf("got %v", err)
	}
}
