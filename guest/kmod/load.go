package kmod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Loader loads modules into the running kernel. It may be used by several
// goroutines at once.
type Loader struct {
	index *Index
	mu    sync.Mutex
	done  map[string]bool
}

// NewLoader is a Loader over the module folder of the running kernel. The
// error wraps fs.ErrNotExist if there is no such folder.
func NewLoader() (*Loader, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	index, err := ReadIndex(filepath.Join("/lib/modules", unix.ByteSliceToString(u.Release[:])))
	if err != nil {
		return nil, fmt.Errorf("no kernel modules: %w", err)
	}
	return &Loader{index: index, done: make(map[string]bool)}, nil
}

// Load loads the modules that a name or alias asks for, after what they depend
// on. A module that is loaded already is no error; a request that no module
// answers is.
func (l *Loader) Load(request string) error {
	names := l.index.Resolve(request)
	if len(names) == 0 {
		return fmt.Errorf("kernel module %s: not in this image", request)
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, l.load(name))
	}
	return errors.Join(errs...)
}

func (l *Loader) load(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done[name] {
		return nil
	}
	for _, n := range slices.Backward(append([]string{name}, l.index.modules[name].deps...)) {
		if l.done[n] {
			continue
		}
		// Whether it works or not, it is tried once: the next device
		// with the same alias would fail the same way.
		l.done[n] = true
		if err := insert(l.index.modules[n].file); err != nil {
			return fmt.Errorf("kernel module %s: %w", n, err)
		}
	}
	return nil
}

func insert(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// Coldplug loads the modules of all devices that the kernel knows. New buses
// can come to light with the modules just loaded (virtio devices behind their
// PCI function), so it looks again until nothing new turns up.
func (l *Loader) Coldplug() error {
	var errs []error
	asked := make(map[string]bool)
	for again := true; again; {
		again = false
		for _, modalias := range l.modaliases() {
			if asked[modalias] {
				continue
			}
			asked[modalias] = true
			for _, name := range l.index.Resolve(modalias) {
				again = true
				errs = append(errs, l.load(name))
			}
		}
	}
	return errors.Join(errs...)
}

// modaliases are the module aliases of all devices in sysfs that a module of
// the index may be for.
func (l *Loader) modaliases() []string {
	var list []string
	for bus := range l.index.aliases {
		switch bus {
		case "", "devname":
		case "cpu":
			// Of the processor's features, such as SVM.
			list = appendModalias(list, "/sys/devices/system/cpu")
		case "input":
			list = appendModaliases(list, "/sys/class/input")
		default:
			list = appendModaliases(list, filepath.Join("/sys/bus", bus, "devices"))
		}
	}
	return list
}

// appendModaliases appends the aliases of all devices in a folder.
func appendModaliases(list []string, dir string) []string {
	// A bus may have no devices.
	devices, _ := os.ReadDir(dir)
	for _, d := range devices {
		list = appendModalias(list, filepath.Join(dir, d.Name()))
	}
	return list
}

func appendModalias(list []string, device string) []string {
	// Not every device has one, and it may go away meanwhile.
	b, err := os.ReadFile(filepath.Join(device, "modalias"))
	if err != nil || len(b) == 0 {
		return list
	}
	return append(list, strings.TrimSpace(string(b)))
}

// Node is a device file that exists before its driver is loaded; opening it
// makes the kernel ask for the module.
type Node struct {
	Path         string // below /dev
	Major, Minor uint32
}

// Nodes are the device files of modules that ask for one.
func (l *Loader) Nodes() []Node { return l.index.nodes() }
