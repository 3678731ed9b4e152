package blk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A disk on storage that several hosts share is handed from one process to another
// when its guest moves: the one makes its writes durable and gives the lock up, the
// other one, which opened the image before without touching it, takes the lock and
// looks at it again.

// Deactivate makes the writes durable and gives the locks up. The device is stopped,
// and stays so until Activate.
func (d *Device) Deactivate() error {
	if err := d.Sync(); err != nil {
		return err
	}
	err := unlockFile(d.image.buffered)
	if d.overlay != nil && d.overlay.scratch == nil {
		err = errors.Join(err, unlockFile(d.overlay.file.buffered))
	}
	if err != nil {
		return fmt.Errorf("unlock disk %s: %w", d.config.name(), err)
	}
	return nil
}

// Activate takes the locks. The device is stopped, and was made with Config.Inactive
// or is deactivated; it must not be started where this fails.
func (d *Device) Activate() error {
	if err := d.activate(); err != nil {
		return fmt.Errorf("disk %s: %w", d.config.name(), err)
	}
	return nil
}

func (d *Device) activate() error {
	if err := d.image.lock(d.config.ReadOnly || d.config.overlaid()); err != nil {
		return err
	}
	// What this host has read of the disk while it was another one's, for instance to
	// find out what it is.
	if err := unix.Fadvise(d.image.buffered, 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("drop what is cached of the image: %w", err)
	}
	size, err := d.image.size()
	if err != nil {
		return err
	}
	if size != d.Capacity() {
		return fmt.Errorf("it has %d bytes by now, and had %d when the guest was about to move: give it that size again", size, d.Capacity())
	}
	switch {
	case !d.config.overlaid():
		return nil
	case d.overlay == nil:
		d.overlay, err = openOverlay(d.config, d.image, size)
		return err
	case d.overlay.scratch == nil:
		return lockFile(d.overlay.file.buffered, d.overlay.file.path, false)
	}
	return nil
}
