package live

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/godwit-vmm/godwit/internal/durable"
	"github.com/godwit-vmm/godwit/migrate/stream"
	"golang.org/x/sys/unix"
)

// DiskFile is the file of a disk that comes from another host. It has another name until
// the disk is complete and the guest about to run: what a migration that failed leaves
// behind, if anything, is not taken for the disk.
//
// It is the stream.DiskTarget of one goroutine; the other methods are for one at a time,
// when that has ended.
type DiskFile struct {
	path string
	file *os.File // nil after Close
	// id is what file it is, so that another one with its name is not removed: as long
	// as it is open, no other file can be taken for it.
	id fs.FileInfo
	// leftover is set if it had contents before.
	leftover, committed bool
	// unsynced is how many bytes were written since the host was last told to begin
	// with writing them to the disk.
	unsynced int
}

// InterimSuffix is what the name of a DiskFile has at its end until Commit.
const InterimSuffix = ".incoming"

// flushSize is after how many bytes the host begins to write them to the disk. Else it
// would have to write gigabytes when they are to be durable, while the guest stands still.
const flushSize = 8 << 20

// CreateDiskFile makes the file for a disk that is to be at path, where nothing is yet.
// data is how many of its size bytes are not in holes: the file system has to have room
// for them. What an earlier migration has left behind is used.
func CreateDiskFile(path string, size, data uint64) (_ *DiskFile, err error) {
	d := &DiskFile{path: path}
	if err := absent(path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(d.Interim(), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the file for a disk: %w", err)
	}
	d.file = f
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if err := d.lock(); err != nil {
		return nil, err
	}
	if err := d.room(data); err != nil {
		if !d.leftover {
			err = errors.Join(err, d.Remove())
		}
		return nil, err
	}
	if err := f.Truncate(int64(size)); err != nil {
		return nil, errors.Join(fmt.Errorf("give %s the size of the disk: %w", f.Name(), err), d.Remove())
	}
	return d, nil
}

// absent makes sure that there is nothing at a path.
func absent(path string) error {
	switch _, err := os.Lstat(path); {
	case err == nil:
		return fmt.Errorf("%s: %w: a disk that comes gets a new file; remove that one, or give another path", path, fs.ErrExist)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return nil
}

// lock makes sure that no other migration uses the file.
func (d *DiskFile) lock() error {
	var err error
	if d.id, err = d.file.Stat(); err != nil {
		return err
	}
	if !d.id.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file: remove it, or give another path", d.file.Name())
	}
	d.leftover = d.id.Size() > 0
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(d.file.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		return fmt.Errorf("%s is used by another migration: wait for that one to end, or give another path: %w", d.file.Name(), err)
	}
	// Its name may have been changed, or removed, before there was the lock.
	if now, err := os.Lstat(d.file.Name()); err != nil || !os.SameFile(now, d.id) {
		return fmt.Errorf("%s was replaced by another migration: try again", d.file.Name())
	}
	return nil
}

// room makes sure that the file system has room for so many bytes of the file.
func (d *DiskFile) room(data uint64) error {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(d.file.Fd()), &fs), unix.Fstat(int(d.file.Fd()), &st)); err != nil {
		return fmt.Errorf("look for room for %s: %w", d.file.Name(), err)
	}
	has := fs.Bavail*uint64(fs.Bsize) + uint64(st.Blocks)*512
	if has < data {
		return fmt.Errorf("%s: the file system has room for %d MiB, and the disk has %d MiB: free some, or give another path", d.path, has>>20, (data+1<<20-1)>>20)
	}
	return nil
}

// Interim is the path where the file is until Commit.
func (d *DiskFile) Interim() string { return d.path + InterimSuffix }

// Leftover says that an earlier migration has left contents behind.
func (d *DiskFile) Leftover() bool { return d.leftover }

// ReadAt is that of stream.DiskTarget.
func (d *DiskFile) ReadAt(p []byte, offset int64) (int, error) { return d.file.ReadAt(p, offset) }

// WriteAt is that of stream.DiskTarget.
func (d *DiskFile) WriteAt(p []byte, offset int64) (int, error) {
	n, err := d.file.WriteAt(p, offset)
	if d.unsynced += n; err == nil && d.unsynced >= flushSize {
		d.unsynced = 0
		// It saves time; what it does not do, Sync does.
		_ = unix.SyncFileRange(int(d.file.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	return n, err
}

// Zero is that of stream.DiskTarget.
func (d *DiskFile) Zero(offset, length uint64) error {
	for {
		err := unix.Fallocate(int(d.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(offset), int64(length))
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP):
			return d.writeZeros(offset, offset+length)
		default:
			return err
		}
	}
}

// writeZeros is for file systems that make no holes. What was never written is zeros.
func (d *DiskFile) writeZeros(offset, end uint64) error {
	zeros := make([]byte, min(end-offset, 1<<20))
	for offset < end {
		data, err := d.file.Seek(int64(offset), unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && uint64(data) >= end {
			return nil
		}
		if err == nil {
			offset = uint64(data)
		}
		n, err := d.file.WriteAt(zeros[:min(uint64(len(zeros)), end-offset)], int64(offset))
		if err != nil {
			return err
		}
		offset += uint64(n)
	}
	return nil
}

// Sync is that of stream.DiskTarget.
func (d *DiskFile) Sync() error { return d.file.Sync() }

// Commit gives the file, which is complete and durable, the name of the disk, and drops
// its lock. When it returns that is durable, too. It fails if there is something of
// that name by now.
func (d *DiskFile) Commit() error {
	if d.committed {
		return nil
	}
	if err := rename(d.Interim(), d.path); err != nil {
		return fmt.Errorf("give a disk its name: %w", err)
	}
	d.committed = true
	unlock := unix.Flock_t{Type: unix.F_UNLCK, Whence: io.SeekStart}
	return errors.Join(unix.FcntlFlock(d.file.Fd(), unix.F_OFD_SETLK, &unlock), durable.SyncPath(filepath.Dir(d.path)))
}

// rename changes the name of a file to one that there is not.
func rename(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) {
		return os.NewSyscallError("rename "+to, err)
	}
	// The file system does not know that flag.
	if err := os.Link(from, to); err != nil {
		return err
	}
	return os.Remove(from)
}

// Withdraw undoes Commit, for a guest that does not run here after all, and closes the
// file, which is a leftover from now on.
func (d *DiskFile) Withdraw() error {
	if d.file == nil || !d.committed {
		return nil
	}
	now, err := os.Lstat(d.path)
	if err == nil && os.SameFile(now, d.id) {
		err = rename(d.path, d.Interim())
	}
	d.committed = false
	return errors.Join(err, d.Close())
}

// Committed says whether the file has the name of the disk.
func (d *DiskFile) Committed() bool { return d.committed }

// Close closes the file, which stays where it is.
func (d *DiskFile) Close() error {
	if d.file == nil {
		return nil
	}
	f := d.file
	d.file = nil
	return f.Close()
}

// Remove removes and closes the file, whatever its name is. After Close it does nothing.
func (d *DiskFile) Remove() error {
	if d.file == nil {
		return nil
	}
	path := d.Interim()
	if d.committed {
		path = d.path
	}
	var err error
	if now, e := os.Lstat(path); e == nil && os.SameFile(now, d.id) {
		err = os.Remove(path)
	}
	return errors.Join(err, d.Close())
}

var _ stream.DiskTarget = (*DiskFile)(nil)
