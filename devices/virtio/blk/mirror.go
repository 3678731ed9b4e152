package blk

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A disk that moves to another host is copied there while the guest writes to it:
// the log has what was written since it was read. Where there is an overlay, the
// copy is of the disk that the guest sees.

// LogGranule is how many bytes of the disk have one bit in the log.
const LogGranule = 64 << 10

// writeLog has a bit for each granule of the disk in which something has changed.
type writeLog []atomic.Uint64

func newWriteLog(size uint64) writeLog {
	return make(writeLog, (size+64*LogGranule-1)/(64*LogGranule))
}

// add notes a change of length bytes from offset.
func (l writeLog) add(offset, length uint64) {
	if length == 0 {
		return
	}
	end := min((offset+length-1)/LogGranule+1, uint64(len(l))*64)
	for at := offset / LogGranule; at < end; {
		bit := at % 64
		n := min(64-bit, end-at)
		l[at/64].Or(^uint64(0) >> (64 - n) << bit)
		at += n
	}
}

// note notes what a request has changed, or may have if it failed.
//
// It is called when the work has ended, and not before it begins: who takes the bit
// out of the log and reads the granule while the work is under way, gets some of the
// old contents; the bit that is set afterwards has the granule read again. And when the
// device has stopped, the work has ended of all there was.
func (l writeLog) note(r *request) {
	switch r.work {
	case workWrite:
		l.add(r.offset-uint64(r.done), uint64(r.length))
	case workDiscard, workZeroes:
		for _, s := range r.spans {
			l.add(s.offset, s.length)
		}
	}
}

// StartLog notes from now on what changes on the disk; the log is empty first. It may
// be called from any goroutine, and so may the other methods of this file.
func (d *Device) StartLog() {
	l := newWriteLog(d.Capacity())
	d.log.Store(&l)
}

// StopLog ends the log.
func (d *Device) StopLog() { d.log.Store(nil) }

// FetchDirty sets the bit of each granule that was written since StartLog or the last
// call: granule n is bit n%64 of dst[n/64]. What a request writes that is under way
// comes with a later call, at the latest with one after Stop. Dst has a bit for each
// granule of the disk as it was at StartLog.
func (d *Device) FetchDirty(dst []uint64) {
	l := d.log.Load()
	if l == nil {
		return
	}
	for i := range min(len(*l), len(dst)) {
		if (*l)[i].Load() != 0 {
			dst[i] |= (*l)[i].Swap(0)
		}
	}
}

// ReadAt reads what the guest would read. It is that of io.ReaderAt, for ranges that
// lie on the disk.
func (d *Device) ReadAt(p []byte, offset int64) (n int, err error) {
	if size := d.Capacity(); offset < 0 || uint64(offset) > size || uint64(len(p)) > size-uint64(offset) {
		return 0, fmt.Errorf("read %d bytes at %d of disk %s: it has %d", len(p), offset, d.config.name(), size)
	}
	for n < len(p) {
		m, at, length := d.locate(uint64(offset)+uint64(n), uint64(len(p)-n))
		if errno := readAt(m.buffered, p[n:n+int(length)], at, 0); errno != 0 {
			return n, fmt.Errorf("read %d bytes at %d of disk %s: %w", len(p), offset, d.config.name(), errno)
		}
		if m.direct >= 0 {
			// The data of this disk is not wanted in the page cache. That it stays
			// there is no harm but to others.
			_ = unix.Fadvise(m.buffered, int64(at), int64(length), unix.FADV_DONTNEED)
		}
		n += int(length)
	}
	return n, nil
}

// NextData finds the first range from offset on that may hold something else than
// zeros; both ends are the capacity if there is none.
func (d *Device) NextData(offset uint64) (start, end uint64, err error) {
	size := d.Capacity()
	for offset < size {
		m, at, length := d.locate(offset, size-offset)
		first, last, err := m.nextData(at, at+length)
		if err != nil {
			return 0, 0, fmt.Errorf("look for data on disk %s: %w", d.config.name(), err)
		}
		if first < last {
			return offset + first - at, offset + last - at, nil
		}
		offset += length
	}
	return size, size, nil
}

// locate says in which file, and where, a range of the disk is, and how much of it is
// there in one piece.
func (d *Device) locate(offset, length uint64) (m *image, at, n uint64) {
	if d.overlay != nil {
		return d.overlay.locate(offset, length)
	}
	return d.image, offset, length
}

// nextData finds the first data of the file between two offsets; there is none if both
// ends are the same. Block devices, and file systems that do not know of holes, have
// nothing but data.
func (m *image) nextData(from, to uint64) (start, end uint64, err error) {
	start, err = m.seek(from, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return to, to, nil
	case err != nil && cannot(errnoOf(err)):
		return from, to, nil
	case err != nil || start >= to:
		return to, to, err
	}
	end, err = m.seek(start, unix.SEEK_HOLE)
	if errors.Is(err, unix.ENXIO) { // it has become a hole since
		return start, to, nil
	}
	return start, min(end, to), err
}

// seek is lseek(2). The position of the file, which it moves, is used for nothing else.
func (m *image) seek(offset uint64, whence int) (uint64, error) {
	for {
		at, err := unix.Seek(m.buffered, int64(offset), whence)
		if !errors.Is(err, unix.EINTR) {
			return uint64(at), err
		}
	}
}
