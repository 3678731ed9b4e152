package blk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// overlay is a file that takes the writes of a disk whose image, the base, is
// only read: many disks may have one base. A cluster is in the base until it is
// written for the first time, and in the overlay from then on, at a place that
// its number says (overlay_format.go). So an access is one system call here as
// with an image alone, but for those that touch clusters of both kinds.
type overlay struct {
	*present
	file, base *image
	size       uint64 // of the disk
	claims     *claims
	scratch    *Scratch // nil if the overlay has a name
}

// overlaid tells whether the disk has an overlay.
func (c *Config) overlaid() bool { return c.Overlay != "" || c.Scratch != nil }

// openOverlay opens and locks the overlay of a disk of the given size, and makes
// it if it is not there.
func openOverlay(c Config, base *image, size uint64) (*overlay, error) {
	if size > maxOverlaid {
		return nil, fmt.Errorf("a disk of %d bytes is too large for an overlay, which takes up to %d", size, uint64(maxOverlaid))
	}
	id, err := identify(base, size)
	if err != nil {
		return nil, err
	}
	o := &overlay{file: &image{path: c.Overlay, buffered: -1, direct: -1}, base: base, size: size, claims: newClaims()}
	if c.Scratch != nil {
		err = o.openScratch(c.Scratch, id)
	} else {
		o.present = newPresent(layoutFor(size))
		err = o.openNamed(id)
	}
	if err == nil && c.Direct {
		err = o.file.openDirect(unix.O_RDWR | unix.O_CLOEXEC)
	}
	if err != nil {
		return nil, errors.Join(err, o.drop())
	}
	return o, nil
}

func (o *overlay) openScratch(s *Scratch, id baseID) (err error) {
	if o.file.buffered, o.present, err = s.open(id); err == nil {
		o.scratch = s
	}
	return err
}

// openNamed opens the file, or makes it.
func (o *overlay) openNamed(id baseID) (err error) {
	var st unix.Stat_t
	// Before it is opened, as with images.
	if err := unix.Stat(o.file.path, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("the overlay is no regular file: name one, which is created if it does not exist")
	}
	const flags = unix.O_RDWR | unix.O_CLOEXEC
	fd, err := openFile(o.file.path, flags|unix.O_CREAT|unix.O_EXCL, 0o600)
	created := err == nil
	if errors.Is(err, unix.EEXIST) {
		fd, err = openFile(o.file.path, flags, 0)
	}
	if err != nil {
		return fmt.Errorf("open the overlay: %w", err)
	}
	o.file.buffered, o.fd = fd, fd
	if err := o.tellFromBase(); err != nil {
		return err
	}
	if err := lockFile(fd, o.file.path, false); err != nil {
		return fmt.Errorf("overlay: %w: stop that, or give each machine an overlay of its own", err)
	}
	o.boot = currentBoot()
	// Under the lock: somebody else may have made it in the meantime.
	size, err := o.file.rawSize()
	switch {
	case err != nil:
		return fmt.Errorf("ask for the size of the overlay: %w", err)
	case size > 0:
		return o.open(id, size)
	}
	if err := o.create(id); err != nil {
		if created {
			err = errors.Join(err, os.Remove(o.file.path))
		}
		return err
	}
	return nil
}

// tellFromBase makes sure that the overlay is not the base.
func (o *overlay) tellFromBase() error {
	var file, base unix.Stat_t
	if err := errors.Join(unix.Fstat(o.fd, &file), unix.Fstat(o.base.buffered, &base)); err != nil {
		return fmt.Errorf("look at the overlay: %w", err)
	}
	if file.Dev == base.Dev && file.Ino == base.Ino {
		return errors.New("the overlay is the image itself: name another file, which is created if it does not exist")
	}
	return nil
}

// create makes an overlay of an empty file. From the header on it is a whole
// one, whenever that is interrupted.
func (o *overlay) create(id baseID) (err error) {
	if o.folder, err = openFile(filepath.Dir(o.file.path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open the folder of the overlay: %w", err)
	}
	if errno := writeAt(o.fd, id.encode(), 0); errno != 0 {
		return fmt.Errorf("write the overlay: %w", errno)
	}
	return o.complete()
}

// complete brings an overlay that has nothing but a header to its size, and
// begins a session.
func (o *overlay) complete() error {
	if err := unix.Ftruncate(o.fd, int64(o.end())); err != nil {
		return fmt.Errorf("give the overlay its size of %d bytes, most of it a hole: %w", o.end(), err)
	}
	// A flush shall not fail for want of space for a bitmap.
	bitmaps := span{offset: 0, length: o.durableAt + o.bitmap}
	if errno := fallocate(o.fd, unix.FALLOC_FL_KEEP_SIZE, bitmaps); errno != 0 && !cannot(errno) {
		return fmt.Errorf("make room for the bitmaps of the overlay: %w", errno)
	}
	if errno := o.writeSession(o.boot); errno != 0 {
		return fmt.Errorf("write the overlay: %w", errno)
	}
	return nil
}

// open takes over a file of the given size that was there before.
func (o *overlay) open(id baseID, size uint64) error {
	var header [overlayBlock]byte
	if size < overlayBlock {
		return errNoOverlay
	}
	if errno := readAt(o.fd, header[:], 0, 0); errno != 0 {
		return fmt.Errorf("read the overlay: %w", errno)
	}
	of, err := decodeHeader(header[:])
	if err != nil {
		return err
	}
	if !of.same(id) {
		return fmt.Errorf("the overlay belongs to %v, it does not fit to %v: give it the image as it was, or another overlay", of, id)
	}
	switch size {
	case o.end():
		return o.load()
	case overlayBlock:
		return o.complete()
	}
	return fmt.Errorf("%w (it has %d bytes, it must have %d)", errDamaged, size, o.end())
}

// refuseOverlay makes sure that an image is not an overlay, which read as it is
// would look to the guest like a broken disk.
func refuseOverlay(m *image) error {
	var header [overlayBlock]byte
	if m.device || readAt(m.buffered, header[:], 0, 0) != 0 {
		return nil // what cannot be read shows later
	}
	if of, err := decodeHeader(header[:]); err == nil {
		return fmt.Errorf("the image is an overlay: give the image that it belongs to, %v, and this file as its overlay", of)
	}
	return nil
}

// close makes the overlay durable, if it is to be kept, and closes it.
func (o *overlay) close() error {
	var err error
	if o.unsynced() {
		if errno := o.sync(); errno != 0 {
			err = fmt.Errorf("overlay %s: make it durable: %w", o.file.path, errno)
		}
	}
	return errors.Join(err, o.drop())
}

// drop closes the overlay, however far it was opened.
func (o *overlay) drop() error {
	if o.scratch != nil {
		o.scratch.release()
		return o.file.close()
	}
	var err error
	if o.present != nil {
		if errno := o.closeFolder(); errno != 0 {
			err = errno
		}
	}
	return errors.Join(err, o.file.close())
}
