package snapshot

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// place is where a snapshot will be, and the hidden directory beside it that is
// to become it. Everything happens relative to open directories, so that nobody
// who renames a directory above can lead a writer astray.
type place struct {
	dir    string // as the caller named it, absolute
	name   string
	parent *os.File
	tmp    *os.File
	tmpDir string // name of the hidden directory, "" if there is none
}

const (
	tmpInfix = ".tmp-"
	// tmpRandom is the number of hexadecimal digits behind tmpInfix.
	tmpRandom = 16
)

// newPlace looks whether a snapshot can be made at dir.
func newPlace(dir string) (place, error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return place{}, err
	}
	p := place{dir: path, name: filepath.Base(path)}
	parent := filepath.Dir(path)
	p.parent, err = os.OpenFile(parent, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return p, fmt.Errorf("%w: make the directory %s first", err, parent)
	}
	if err != nil {
		return p, err
	}
	if err := p.vacant(); err != nil {
		p.close()
		return p, err
	}
	if err := cleanStale(p.parent, p.name); err != nil {
		p.close()
		return p, fmt.Errorf("remove what an earlier attempt left: %w", err)
	}
	return p, nil
}

// vacant fails if there is something at dir.
func (p *place) vacant() error {
	var st unix.Stat_t
	err := unix.Fstatat(int(p.parent.Fd()), p.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil:
		return fmt.Errorf("%w: choose another name or remove it", fs.ErrExist)
	case errors.Is(err, unix.ENOENT):
		return nil
	}
	return &os.PathError{Op: "stat", Path: p.dir, Err: err}
}

// occupy makes the hidden directory and the memory file in it, whose lock keeps
// the directory from being taken for one that was left behind. Cleaners wait until
// that lock is held; on a file system without flock one may come between the steps,
// and then the next name is tried.
func (p *place) occupy() (mem *os.File, err error) {
	const attempts = 16
	defer lockFolder(p.parent, unix.LOCK_SH)()
	for range attempts {
		if mem, err = p.tryOccupy(); err == nil || !errors.Is(err, errCleaned) {
			return mem, err
		}
	}
	return nil, err
}

// errCleaned says that a cleaner took a new directory for an old one.
var errCleaned = errors.New("the temporary directory was removed by another process")

func (p *place) tryOccupy() (mem *os.File, err error) {
	var random [tmpRandom / 2]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	name := "." + p.name + tmpInfix + hex.EncodeToString(random[:])
	if err := unix.Mkdirat(int(p.parent.Fd()), name, 0o700); err != nil {
		return nil, &os.PathError{Op: "mkdir", Path: filepath.Join(filepath.Dir(p.dir), name), Err: err}
	}
	p.tmpDir = name
	p.tmp, err = openAt(p.parent, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err == nil {
		mem, err = p.create(MemoryFile)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = errCleaned
	}
	if err == nil {
		if err = lockWriter(mem); err != nil {
			_ = mem.Close()
		}
	}
	if errors.Is(err, errCleaned) {
		p.forget()
	}
	return mem, err
}

// forget gives up a hidden directory that is somebody else's to remove.
func (p *place) forget() {
	if p.tmp != nil {
		_ = p.tmp.Close()
	}
	p.tmp, p.tmpDir = nil, ""
}

// create makes a file in the hidden directory.
func (p *place) create(name string) (*os.File, error) {
	f, err := openAt(p.tmp, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make file: %w", err)
	}
	return f, nil
}

// publish gives the hidden directory its name. It never replaces anything.
func (p *place) publish() error {
	fd := int(p.parent.Fd())
	err := unix.Renameat2(fd, p.tmpDir, fd, p.name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// A file system without the flag. A plain rename of a directory
		// replaces an empty directory at the most.
		if err = p.vacant(); err == nil {
			err = unix.Renameat(fd, p.tmpDir, fd, p.name)
		}
	}
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("somebody else made it meanwhile: %w: choose another name", fs.ErrExist)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: p.tmpPath(), New: p.dir, Err: err}
	}
	if err := p.parent.Sync(); err != nil {
		// It is whole, but nobody knows whether its name is on the disk.
		back := unix.Renameat2(fd, p.name, fd, p.tmpDir, unix.RENAME_NOREPLACE)
		return errors.Join(err, back)
	}
	p.tmpDir = ""
	return nil
}

// discard removes the hidden directory.
func (p *place) discard() error {
	if p.tmpDir == "" {
		return nil
	}
	err := os.RemoveAll(p.tmpPath())
	if err == nil {
		p.tmpDir = ""
	}
	return err
}

// tmpPath is the hidden directory's path, which holds for as long as nobody
// renames a directory above it.
func (p *place) tmpPath() string { return filepath.Join(filepath.Dir(p.dir), p.tmpDir) }

func (p *place) close() {
	if p.tmp != nil {
		_ = p.tmp.Close()
	}
	if p.parent != nil {
		_ = p.parent.Close()
	}
}

// relative is the path of another snapshot as it stands in the manifest: from the
// parent directory, unless they have nothing but the root in common.
func (p *place) relative(dir string) (string, error) {
	to, err := absolute(dir)
	if err != nil {
		return "", err
	}
	from, err := absolute(filepath.Dir(p.dir))
	if err != nil {
		return "", err
	}
	path, err := filepath.Rel(from, to)
	if err != nil {
		return "", err
	}
	climb := strings.Repeat("../", strings.Count(from, "/"))
	if from != "/" && strings.HasPrefix(path, climb) {
		return to, nil
	}
	return path, nil
}

// openAt opens a file in a directory without following a symbolic link.
func openAt(dir *os.File, name string, flags int, perm uint32) (*os.File, error) {
	for {
		fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, perm)
		if err == nil {
			return os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name)), nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, &os.PathError{Op: "open", Path: filepath.Join(dir.Name(), name), Err: err}
		}
	}
}
