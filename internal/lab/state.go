package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/godwit-vmm/godwit/internal/rundir"
	"golang.org/x/sys/unix"
)

// DefaultGroup is the name of a group of hosts that was not given one.
const DefaultGroup = "lab"

// Group is a group of hosts that a Keeper holds.
type Group struct {
	Name    string     `json:"name"`
	PID     int        `json:"pid"` // of the keeper
	Started time.Time  `json:"started"`
	Hosts   []HostInfo `json:"hosts"`
}

// HostInfo says where a host of a group is.
type HostInfo struct {
	Name      string `json:"name"`
	Address   string `json:"address"` // on the group's network
	CPUs      int    `json:"cpus"`
	MemoryMiB int    `json:"memory_mib"`
	// Dir has the console log and the sockets.
	Dir string `json:"dir"`
}

// ConsoleLog is the file with what the host's kernel prints.
func (h HostInfo) ConsoleLog() string { return filepath.Join(h.Dir, consoleLog) }

// groupFile is in a group's folder.
const groupFile = "group.json"

var groupName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,23}$`)

func checkGroupName(name string) error {
	if !groupName.MatchString(name) {
		return fmt.Errorf("lab name %q: want up to 24 small letters, digits and dashes", name)
	}
	return nil
}

// stateDir is the folder of all groups of this user: godwit-lab in
// $XDG_RUNTIME_DIR, or /tmp/godwit-lab-UID.
func stateDir() (string, error) {
	dir := fmt.Sprintf("/tmp/godwit-lab-%d", os.Getuid())
	if runtime := os.Getenv("XDG_RUNTIME_DIR"); runtime != "" {
		dir = filepath.Join(runtime, "godwit-lab")
	}
	const anything = 0o077
	if err := rundir.OwnFolder(dir, anything); errors.Is(err, rundir.ErrNotOwn) {
		return "", fmt.Errorf("lab state folder: %w alone: remove it, or set XDG_RUNTIME_DIR", err)
	} else if err != nil {
		return "", fmt.Errorf("lab state folder: %w", err)
	}
	return dir, nil
}

// groupLock is the file that a group's keeper has locked for as long as it
// lives, with its process number in it. The lock, not the number, tells whether
// the keeper runs, so that a number in use again does no harm. The file is
// never removed: two keepers could then hold locks on different files.
type groupLock struct{ f *os.File }

func openLock(state, name string) (*groupLock, error) {
	f, err := os.OpenFile(filepath.Join(state, name+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	return &groupLock{f}, nil
}

func (l *groupLock) close() { l.f.Close() }

// take takes the lock if it is free.
func (l *groupLock) take() (bool, error) {
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	err := unix.FcntlFlock(l.f.Fd(), unix.F_OFD_SETLK, &whole)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	return err == nil, err
}

// held tells whether a keeper holds the lock.
func (l *groupLock) held() (bool, error) {
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(l.f.Fd(), unix.F_OFD_GETLK, &whole); err != nil {
		return false, err
	}
	return whole.Type != unix.F_UNLCK, nil
}

// clean removes what a keeper left behind that was killed.
func (l *groupLock) clean(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// Under the lock, so that no keeper starts meanwhile.
	if free, err := l.take(); err != nil || !free {
		return err
	}
	return os.RemoveAll(dir)
}

func (l *groupLock) writePID() error {
	if err := l.f.Truncate(0); err != nil {
		return err
	}
	_, err := l.f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
	return err
}

func (l *groupLock) readPID() (int, error) {
	text := make([]byte, 16)
	n, err := l.f.ReadAt(text, 0)
	var pid int
	if _, scanned := fmt.Sscan(string(text[:n]), &pid); scanned != nil {
		return 0, errors.Join(scanned, err)
	}
	return pid, nil
}

// Groups lists the groups that are up. It removes what is left of those whose
// keeper was killed.
func Groups() ([]Group, error) {
	state, err := stateDir()
	if err != nil {
		return nil, err
	}
	locks, err := filepath.Glob(filepath.Join(state, "*.lock"))
	if err != nil {
		return nil, err
	}
	var groups []Group
	for _, file := range locks {
		g, err := readGroup(state, strings.TrimSuffix(filepath.Base(file), ".lock"))
		switch {
		case err == nil:
			groups = append(groups, g)
		case !errors.Is(err, errNotUp):
			return nil, err
		}
	}
	slices.SortFunc(groups, func(a, b Group) int { return strings.Compare(a.Name, b.Name) })
	return groups, nil
}

// errNotUp is about a group without a keeper.
var errNotUp = errors.New("not up")

func readGroup(state, name string) (Group, error) {
	lock, err := openLock(state, name)
	if err != nil {
		return Group{}, err
	}
	defer lock.close()
	dir := filepath.Join(state, name)
	if held, err := lock.held(); err != nil || !held {
		return Group{}, errors.Join(err, lock.clean(dir), fmt.Errorf("lab %s: %w", name, errNotUp))
	}
	text, err := os.ReadFile(filepath.Join(dir, groupFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Group{}, fmt.Errorf("lab %s is still starting: %w", name, errNotUp)
	}
	var g Group
	if err == nil {
		err = json.Unmarshal(text, &g)
	}
	if err != nil {
		return Group{}, fmt.Errorf("lab %s: %w", name, err)
	}
	return g, nil
}

// Find finds a host by its name: GROUP/HOST, or HOST in the DefaultGroup.
func Find(name string) (HostInfo, error) {
	group, host, ok := strings.Cut(name, "/")
	if !ok {
		group, host = DefaultGroup, name
	}
	if err := checkGroupName(group); err != nil {
		return HostInfo{}, err
	}
	state, err := stateDir()
	if err != nil {
		return HostInfo{}, err
	}
	g, err := readGroup(state, group)
	if errors.Is(err, errNotUp) {
		return HostInfo{}, fmt.Errorf("%w: start it with `godwit-lab up --name %s`", err, group)
	}
	if err != nil {
		return HostInfo{}, err
	}
	var names []string
	for _, h := range g.Hosts {
		if h.Name == host {
			return h, nil
		}
		names = append(names, h.Name)
	}
	return HostInfo{}, fmt.Errorf("lab %s has no host %q: it has %s", group, host, strings.Join(names, ", "))
}

// Down ends a group and waits until all of it is gone.
func Down(name string) error {
	if err := checkGroupName(name); err != nil {
		return err
	}
	state, err := stateDir()
	if err != nil {
		return err
	}
	lock, err := openLock(state, name)
	if err != nil {
		return err
	}
	defer lock.close()
	ended, err := lock.endKeeper()
	if err != nil {
		return fmt.Errorf("lab %s: end its keeper: %w", name, err)
	}
	// Removes what a keeper that was killed left behind.
	if _, err := readGroup(state, name); err != nil && !errors.Is(err, errNotUp) {
		return err
	}
	if !ended {
		return fmt.Errorf("lab %s: %w", name, errNotUp)
	}
	return nil
}

// endKeeper terminates the process that holds the lock and waits for its end.
// It tells whether there was one.
func (l *groupLock) endKeeper() (bool, error) {
	if held, err := l.held(); err != nil || !held {
		return false, err
	}
	pid, err := l.readPID()
	if err != nil {
		return false, err
	}
	process, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(process)
	// Still held: so the process that wrote its number lives, and this is it.
	if held, err := l.held(); err != nil || !held {
		return true, err
	}
	if err := unix.PidfdSendSignal(process, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return false, err
	}
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return true, err
		}
	}
}
