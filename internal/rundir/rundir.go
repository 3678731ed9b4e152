// Package rundir keeps one folder for each running virtual machine of this user,
// by which other programs find it by its name: its sockets, its process, and
// whether its guest is up.
//
// The process that runs the machine holds a lock in the folder for as long as it
// lives, so one that was killed is noticed, and its folder is removed by whoever
// comes next. Nothing here needs a daemon.
package rundir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The files of a machine's folder.
const (
	// VsockFile is the socket of the vsock device, unless the user wanted it
	// elsewhere; see Info.
	VsockFile = "vsock"
	// APIFile is the control socket.
	APIFile = "api"
	// ConsoleFile is the log of the console of a machine in the background.
	ConsoleFile = "console.log"

	lockFile = "lock"
	infoFile = "vm.json"
	upFile   = "up.json"
)

// baseLock is in the folder of all machines, and is held while folders are made
// and removed.
const baseLock = ".lock"

// maxSocketPath is the longest path that a socket can have, less what a port
// appends to that of a vsock device (unix(7)).
const maxSocketPath = 107 - len("_4294967295")

// Errors about names.
var (
	// ErrRunning says that the name is taken.
	ErrRunning = errors.New("is running already")
	// ErrNotRunning says that there is no such machine.
	ErrNotRunning = errors.New("is not running")
)

// Info says what other programs need to know of a machine.
type Info struct {
	Name    string    `json:"name"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	// Vsock is the path of the vsock device's socket, empty without one.
	Vsock string `json:"vsock,omitempty"`
	// Arriving says that the machine comes from another host, and does not run here yet.
	Arriving bool `json:"arriving,omitempty"`
}

// maxName is the length of the longest name.
const maxName = 63

// CheckName checks the name of a machine: it is a part of paths, and is typed.
func CheckName(name string) error {
	if !validName(name) {
		return fmt.Errorf("name %q: want up to 63 letters, digits, dots, dashes and underscores, a letter or digit first", name)
	}
	return nil
}

func validName(name string) bool {
	for i, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '-' || c == '_'):
		default:
			return false
		}
	}
	return name != "" && len(name) <= maxName
}

// Base is the folder of all machines of this user: $GODWIT_RUNTIME_DIR, else
// /run/godwit for root and godwit in $XDG_RUNTIME_DIR for others, else
// /tmp/godwit-UID. It is made if need be.
func Base() (string, error) {
	dir := os.Getenv("GODWIT_RUNTIME_DIR")
	xdg := os.Getenv("XDG_RUNTIME_DIR")
	switch {
	case dir != "":
	case os.Getuid() == 0:
		dir = "/run/godwit"
	case xdg != "":
		dir = filepath.Join(xdg, "godwit")
	default:
		dir = fmt.Sprintf("/tmp/godwit-%d", os.Getuid())
	}
	const writable = 0o022
	if err := OwnFolder(dir, writable); errors.Is(err, ErrNotOwn) {
		return "", fmt.Errorf("folder of running machines: %w: remove it, or set GODWIT_RUNTIME_DIR", err)
	} else if err != nil {
		return "", fmt.Errorf("folder of running machines: %w", err)
	}
	return filepath.Abs(dir)
}

// ErrNotOwn says that a folder is another user's, or open to others.
var ErrNotOwn = errors.New("is not a folder of this user's own")

// OwnFolder makes a folder for sockets if need be. In /tmp somebody else may have made
// it before, and whoever owns it, or can write to it, could take the sockets over: the
// error wraps ErrNotOwn for a folder of another user, or with one of the permissions.
func OwnFolder(dir string, forbidden fs.FileMode) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int(stat.Uid) != os.Getuid() || info.Mode().Perm()&forbidden != 0 {
		return fmt.Errorf("%s %w", dir, ErrNotOwn)
	}
	return nil
}

// folder is an open folder of a machine.
type folder struct {
	path string
	fd   *os.File
}

func openFolder(path string) (folder, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return folder{}, fmt.Errorf("%s: %w", path, err)
	}
	return folder{path, os.NewFile(uintptr(fd), path)}, nil
}

// Path is the path of a file in the folder. Where that is too long for a socket
// it is a short one that only this process can use, and only until Close.
func (f folder) Path(file string) string {
	if path := filepath.Join(f.path, file); len(path) <= maxSocketPath {
		return path
	}
	return f.within(file)
}

// within is the path of a file by the descriptor of the folder.
func (f folder) within(file string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", f.fd.Fd(), file)
}

// whole is the lock on a whole file. Locks of open file descriptions are used,
// which other parts of the same process cannot release by accident, and which
// can be asked for without taking them (fcntl(2)).
func whole() *unix.Flock_t { return &unix.Flock_t{Type: unix.F_WRLCK} }

// underLock runs f while no other process makes or removes folders.
func underLock(base string, f func() error) error {
	lock, err := os.OpenFile(filepath.Join(base, baseLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // releases the lock
	for {
		err = unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLKW, whole())
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	return f()
}

// held tells whether a process holds the lock of the machine's folder at path.
func held(path string) (bool, error) {
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer lock.Close()
	l := whole()
	if err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_GETLK, l); err != nil {
		return false, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	return l.Type != unix.F_UNLCK, nil
}

// readJSON reads a file that may be replaced at any time.
func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// writeJSON replaces a file as a whole.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	temp := path + ".new"
	if err := os.WriteFile(temp, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, path)
}
