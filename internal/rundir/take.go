package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A machine that moves from one process of this user to another keeps its name. Until it
// runs in the new process the name is the old one's, which may go on with it: the new one
// has its folder aside, where others do not look, and puts it in the place of the old one
// in one step.

// asidePattern is what the names of folders aside are made of; no machine's is like that.
const asidePattern = ".coming-*"

// CreateAfter is Create for a machine that comes from the process pid. If that has the name
// the folder is made aside: see Aside and Take. 0 is no process.
func CreateAfter(name string, pid int) (*Dir, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	base, err := Base()
	if err != nil {
		return nil, err
	}
	d := newDir(base, name)
	err = underLock(base, func() error {
		if !d.heldBy(pid) {
			return d.make()
		}
		if err := sweepAside(base); err != nil {
			return err
		}
		aside, err := os.MkdirTemp(base, asidePattern)
		if err == nil {
			d.after = pid
			err = d.open(aside)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", name, err)
	}
	return d, nil
}

// heldBy says whether a process has a machine of this name.
func (d *Dir) heldBy(pid int) bool {
	var other Info
	running, err := held(d.place())
	return pid != 0 && err == nil && running && readJSON(filepath.Join(d.place(), infoFile), &other) == nil && other.PID == pid
}

// sweepAside removes the folders that killed processes have left.
func sweepAside(base string) error {
	entries, err := os.ReadDir(base)
	if err != nil {
		return err
	}
	prefix, _, _ := strings.Cut(asidePattern, "*")
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			if err := removeStale(filepath.Join(base, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Aside says that another process has the machine's name.
func (d *Dir) Aside() bool { return d.after != 0 }

// Take takes the name over. Whoever looks for the machine finds it here from now on. The
// error wraps ErrRunning if a third process has the name by now: the folder stays aside
// then.
func (d *Dir) Take() error {
	if !d.Aside() {
		return nil
	}
	err := underLock(d.base, func() error {
		aside, place := d.path, d.place()
		var err error
		if d.heldBy(d.after) {
			err = unix.Renameat2(unix.AT_FDCWD, aside, unix.AT_FDCWD, place, unix.RENAME_EXCHANGE)
		} else if err = clear(place); err == nil {
			err = os.Rename(aside, place)
		}
		if err != nil {
			return err
		}
		d.path, d.after = place, 0
		// What the other process had there, if it was exchanged.
		return os.RemoveAll(aside)
	})
	if err != nil {
		return fmt.Errorf("take over the name %s: %w", d.info.Name, err)
	}
	return nil
}

// own says whether the folder at the path is this one: not if the machine has moved on.
func (d *Dir) own() (bool, error) {
	mine, err := d.fd.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Lstat(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, there), err
}
