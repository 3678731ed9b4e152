package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is the folder of a machine that this process runs.
type Dir struct {
	folder
	info Info
	base string
	lock *os.File
	// after is the process that has the name, if the folder is aside; else 0.
	after int
}

func newDir(base, name string) *Dir {
	return &Dir{base: base, info: Info{Name: name, PID: os.Getpid(), Started: time.Now().UTC()}}
}

// place is where others look for the folder.
func (d *Dir) place() string { return filepath.Join(d.base, d.info.Name) }

// Path is the path of a file in the folder. Only this process can use it, and only until
// Close; it stays right when the folder gets another place, or another one gets its place.
func (d *Dir) Path(file string) string { return d.within(file) }

// Create makes the folder of a machine. The error wraps ErrRunning if there is a
// machine of this name.
func Create(name string) (*Dir, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	base, err := Base()
	if err != nil {
		return nil, err
	}
	d := newDir(base, name)
	if err := underLock(base, d.make); err != nil {
		return nil, fmt.Errorf("machine %s: %w", name, err)
	}
	return d, nil
}

// maxNumbered bounds the names that CreateNumbered tries.
const maxNumbered = 1000

// CreateNumbered is Create with the first of NAME, NAME-2, NAME-3 and so on that is
// free and that may tells to be allowed; nil allows all.
func CreateNumbered(name string, may func(name string) bool) (*Dir, error) {
	err := error(ErrRunning)
	for i := 1; i <= maxNumbered; i++ {
		next := name
		if i > 1 {
			next = fmt.Sprintf("%s-%d", name, i)
		}
		if may != nil && !may(next) {
			continue
		}
		var d *Dir
		if d, err = Create(next); !errors.Is(err, ErrRunning) {
			return d, err
		}
	}
	return nil, err
}

// make makes the folder in the place of one that a process left which was
// killed. The caller holds the lock of the base.
func (d *Dir) make() error {
	path := d.place()
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, fs.ErrExist) {
		if err = clear(path); err == nil {
			err = os.Mkdir(path, 0o700)
		}
	}
	if err != nil {
		return err
	}
	return d.open(path)
}

// open fills the folder at path, which is new.
func (d *Dir) open(path string) (err error) {
	if d.folder, err = openFolder(path); err != nil {
		return err
	}
	// The lock last: a machine whose lock is held has all the rest.
	err = d.save()
	if err == nil {
		d.lock, err = os.OpenFile(d.Path(lockFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if err == nil {
		err = unix.FcntlFlock(d.lock.Fd(), unix.F_OFD_SETLK, whole())
	}
	if err != nil {
		return errors.Join(err, d.remove())
	}
	return nil
}

// clear removes the folder of a machine that is gone.
func clear(path string) error {
	running, err := held(path)
	if err != nil {
		return err
	}
	if running {
		var other Info
		// The number is only for the message.
		_ = readJSON(filepath.Join(path, infoFile), &other)
		return fmt.Errorf("%w (process %d)", ErrRunning, other.PID)
	}
	return os.RemoveAll(path)
}

func (d *Dir) save() error { return writeJSON(d.Path(infoFile), d.info) }

// Name of the machine.
func (d *Dir) Name() string { return d.info.Name }

// SetVsock tells others where the socket of the vsock device is, if it is not
// VsockFile in this folder.
func (d *Dir) SetVsock(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	d.info.Vsock = path
	return d.save()
}

// SetArriving tells others whether the machine is one that comes from another host, and has
// not come yet.
func (d *Dir) SetArriving(arriving bool) error {
	d.info.Arriving = arriving
	return d.save()
}

// SetUp tells others that the guest is up. What is said of it is for whoever asks
// by VM.Up.
func (d *Dir) SetUp(guest any) error { return writeJSON(d.Path(upFile), guest) }

// SetDown tells others that the guest is not up any more.
func (d *Dir) SetDown() error {
	err := os.Remove(d.Path(upFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Close removes the folder. The machine is gone, or was taken over.
func (d *Dir) Close() error { return underLock(d.base, d.remove) }

func (d *Dir) remove() error {
	own, err := d.own()
	if own {
		err = os.RemoveAll(d.path)
	}
	errs := []error{err, d.fd.Close()}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}
