package snapshot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CleanStale removes the hidden directories in parent that killed writers left.
// It leaves alone those of writers that live, in this or another process.
func CleanStale(parent string) error {
	d, err := os.OpenFile(parent, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("remove unfinished snapshots: %w", err)
	}
	defer d.Close()
	if err := cleanStale(d, ""); err != nil {
		return fmt.Errorf("remove unfinished snapshots in %s: %w", parent, err)
	}
	return nil
}

// cleanStale removes the stale directories of snapshots of this name, or of all
// names if it is empty.
func cleanStale(parent *os.File, name string) error {
	const batch = 256
	// Reading and removing by turns may leave out entries, so names come first.
	var stale []string
	for {
		names, err := parent.Readdirnames(batch)
		for _, n := range names {
			if of, ok := tmpOf(n); ok && (name == "" || of == name) {
				stale = append(stale, n)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	var errs []error
	for _, n := range stale {
		if err := removeStale(parent, n); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// tmpOf returns the name of the snapshot that a hidden directory was to become.
func tmpOf(hidden string) (name string, ok bool) {
	at := len(hidden) - tmpRandom - len(tmpInfix)
	if at < 2 || hidden[0] != '.' || hidden[at:at+len(tmpInfix)] != tmpInfix {
		return "", false
	}
	if strings.Trim(hidden[at+len(tmpInfix):], "0123456789abcdef") != "" {
		return "", false
	}
	return hidden[1:at], true
}

// removeStale removes a hidden directory unless its writer lives.
func removeStale(parent *os.File, name string) error {
	tmp, err := openAt(parent, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, fs.ErrPermission) {
		return nil // not a writer's, or another user's
	}
	if err != nil {
		return err
	}
	defer tmp.Close()
	stale, err := isStale(parent, tmp, name)
	if err != nil || !stale {
		return err
	}
	return os.RemoveAll(filepath.Join(parent.Name(), name))
}

// isStale tells whether a hidden directory was left behind; one without a memory file it
// removes itself.
func isStale(parent, tmp *os.File, name string) (bool, error) {
	// Nobody is just beginning.
	defer lockFolder(parent, unix.LOCK_EX)()
	mem, err := openAt(tmp, MemoryFile, unix.O_RDWR|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		// Its writer was killed when it began. Where the folder cannot be locked
		// it may be beginning: removing fails if a memory file appears meanwhile.
		err := unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR)
		if errors.Is(err, unix.ENOTEMPTY) {
			return false, nil
		}
		return false, err
	}
	if err != nil {
		return false, err
	}
	defer mem.Close()
	if err := lock(mem); err != nil {
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return false, nil // its writer lives
		}
		return false, err
	}
	// A writer keeps its lock until the directory has its final name, so if
	// the hidden name still leads here, nobody will want it any more.
	return stillAt(mem, parent, name)
}

// lockPatience is how long another program may hold a lock on the folder.
const lockPatience = time.Second

// lockFolder takes a lock on an open folder (flock(2)) and returns what releases it. It
// keeps those who clean up and those who begin apart. Not all file systems have it, and
// whoever can read the folder could hold it: then it goes without.
func lockFolder(folder *os.File, how int) (unlock func()) {
	for end := time.Now().Add(lockPatience); time.Now().Before(end); {
		switch err := unix.Flock(int(folder.Fd()), how|unix.LOCK_NB); {
		case err == nil:
			return func() { _ = unix.Flock(int(folder.Fd()), unix.LOCK_UN) }
		case errors.Is(err, unix.EWOULDBLOCK):
			time.Sleep(time.Millisecond) // a lock is held for less
		case !errors.Is(err, unix.EINTR):
			return func() {}
		}
	}
	return func() {}
}

// stillAt tells whether the memory file is the one in the directory of this name.
func stillAt(mem, parent *os.File, name string) (bool, error) {
	var have, found unix.Stat_t
	if err := unix.Fstat(int(mem.Fd()), &have); err != nil {
		return false, err
	}
	err := unix.Fstatat(int(parent.Fd()), name+"/"+MemoryFile, &found, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil && have.Dev == found.Dev && have.Ino == found.Ino, err
}

// lock takes the lock of a memory file. It belongs to the open file description,
// so it also keeps other writers of this process out, and ends with the process.
func lock(mem *os.File) error {
	whole := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	return unix.FcntlFlock(mem.Fd(), unix.F_OFD_SETLK, &whole)
}

// lockWriter takes the lock of a memory file that was just made. The error is
// errCleaned if a cleaner was quicker.
func lockWriter(mem *os.File) error {
	err := lock(mem)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return errCleaned
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", mem.Name(), err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(mem.Fd()), &st); err != nil {
		return err
	}
	if st.Nlink == 0 {
		return errCleaned
	}
	return nil
}
