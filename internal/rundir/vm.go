package rundir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// VM is a machine that runs.
type VM struct {
	Info
	folder
}

// Open finds a machine. The error wraps ErrNotRunning if there is none of this
// name.
func Open(name string) (*VM, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	base, err := Base()
	if err != nil {
		return nil, err
	}
	vm, err := open(filepath.Join(base, name))
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", name, err)
	}
	return vm, nil
}

func open(path string) (*VM, error) {
	running, err := held(path)
	if err != nil {
		return nil, err
	}
	if !running {
		return nil, ErrNotRunning
	}
	vm := &VM{}
	if vm.folder, err = openFolder(path); err != nil {
		return nil, ended(err)
	}
	if err := readJSON(filepath.Join(path, infoFile), &vm.Info); err != nil {
		return nil, errors.Join(ended(err), vm.Close())
	}
	return vm, nil
}

// ended takes the absence of files of a machine that ran a moment ago for its end.
func ended(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotRunning
	}
	return err
}

// Close forgets the machine. It runs on.
func (vm *VM) Close() error { return vm.fd.Close() }

// VsockPath is where the socket of the vsock device is.
func (vm *VM) VsockPath() string {
	if vm.Vsock != "" {
		return vm.Vsock
	}
	return vm.Path(VsockFile)
}

// Up tells whether the guest is up, and fills guest with what is known of it; nil
// if that is not wanted.
func (vm *VM) Up(guest any) (bool, error) {
	if guest == nil {
		guest = new(json.RawMessage)
	}
	err := readJSON(filepath.Join(vm.path, upFile), guest)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// List finds all machines that run, by name, and removes what killed processes
// have left. The caller closes them.
func List() ([]*VM, error) {
	base, err := Base()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(base)
	if err != nil {
		return nil, err
	}
	var vms []*VM
	for _, e := range entries {
		if !e.IsDir() || CheckName(e.Name()) != nil {
			continue
		}
		path := filepath.Join(base, e.Name())
		vm, err := open(path)
		if errors.Is(err, ErrNotRunning) {
			err = underLock(base, func() error { return removeStale(path) })
			if err != nil {
				return vms, err
			}
			continue
		}
		// One that has just ended is none.
		if err == nil {
			vms = append(vms, vm)
		}
	}
	return vms, nil
}

// removeStale removes the folder of a process that was killed.
func removeStale(path string) error {
	running, err := held(path)
	if err != nil || running {
		return err
	}
	return os.RemoveAll(path)
}
