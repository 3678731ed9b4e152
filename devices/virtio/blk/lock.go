package blk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInUse is wrapped by the error about an image that another machine, or a
// program with like habits, has open.
var ErrInUse = errors.New("the image is in use")

// lockFile takes a lock on the whole file, for as long as fd is open: one for
// writing, which nobody else may have at the same time, or a shared one. The
// locks are those of open file descriptions: they keep apart two disks of one
// process too, and closing another descriptor of the file does not lose them.
func lockFile(fd int, path string, shared bool) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if shared {
		lock.Type = unix.F_RDLCK
	}
	err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w by %s", ErrInUse, holder(fd, path, lock))
	}
	if err != nil {
		return fmt.Errorf("lock the image, which its file system must be able to: %w", err)
	}
	return nil
}

// unlockFile gives the lock up.
func unlockFile(fd int) error {
	return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Whence: io.SeekStart})
}

// holder says who has a lock that is in the way of the wanted one.
func holder(fd int, path string, wanted unix.Flock_t) string {
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &wanted); err == nil && wanted.Type != unix.F_UNLCK && wanted.Pid > 0 {
		return processName(strconv.Itoa(int(wanted.Pid)))
	}
	// Locks of open file descriptions have no owner, but show at the
	// descriptors.
	info, err := os.Stat(path)
	if err != nil {
		return "another process"
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return "another process"
	}
	for _, dir := range processes {
		if holdsLock(dir, info) {
			return processName(filepath.Base(dir))
		}
	}
	return "another process, which cannot be seen from here"
}

// holdsLock tells whether the process with the given directory in /proc has a
// lock on the file.
func holdsLock(dir string, file os.FileInfo) bool {
	fds, err := os.ReadDir(filepath.Join(dir, "fdinfo"))
	if err != nil {
		return false // it has ended, or belongs to somebody else
	}
	for _, fd := range fds {
		// First what cannot block, unlike a file system that does not answer.
		text, err := os.ReadFile(filepath.Join(dir, "fdinfo", fd.Name()))
		if err != nil || !strings.Contains(string(text), "\nlock:") {
			continue
		}
		if other, err := os.Stat(filepath.Join(dir, "fd", fd.Name())); err == nil && os.SameFile(file, other) {
			return true
		}
	}
	return false
}

func processName(pid string) string {
	if pid == strconv.Itoa(os.Getpid()) {
		return "another disk of this process"
	}
	name, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
	if err != nil {
		return "process " + pid
	}
	return fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(string(name)))
}
