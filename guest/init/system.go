package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/guest/kmod"
)

const (
	// path is where commands are: u-root's in /bbin, godwit's own in /bin.
	path = "/bbin:/bin:/sbin:/usr/bin:/usr/sbin:/usr/local/bin"
	// rootPath is the same in a root file system: its own come first, and
	// then those that godwit brings along, for a system that has few or none.
	rootPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:" + ownFiles + "/bin:" + ownFiles + "/bbin"
)

// mounts are the file systems of a running system, in the order that their
// mount points need.
var mounts = []struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}{
	{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666"},
	{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
}

// links are the names in /dev that shells and libraries expect.
var links = map[string]string{
	"/dev/fd":     "/proc/self/fd",
	"/dev/stdin":  "/proc/self/fd/0",
	"/dev/stdout": "/proc/self/fd/1",
	"/dev/stderr": "/proc/self/fd/2",
}

func mountAll() error {
	var errs []error
	for _, m := range mounts {
		errs = append(errs, os.MkdirAll(m.target, 0o755))
		err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
		// Busy: the kernel mounted it itself.
		if err != nil && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err))
		}
	}
	for name, target := range links {
		if err := os.Symlink(target, name); err != nil && !errors.Is(err, os.ErrExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func setEnvironment(o options) {
	home, commands := "/root", path
	if o.root.device != "" {
		commands = rootPath
	}
	if err := os.MkdirAll(home, 0o700); err != nil {
		home = "/" // of an image that cannot be written
	}
	for name, value := range map[string]string{
		"PATH": commands, "HOME": home, "USER": "root", "SHELL": shell(), "TERM": o.term,
	} {
		complain(os.Setenv(name, value))
	}
	complain(os.Chdir(home))
}

// shell is the shell of the root file system, or the one that godwit brings along.
func shell() string {
	for _, file := range []string{"/bin/bash", "/bin/sh"} {
		if unix.Access(file, unix.X_OK) == nil {
			return file
		}
	}
	return filepath.Join(ownFiles, "bin/sh")
}

// makeNode makes a device file whose driver is loaded when it is opened.
func makeNode(n kmod.Node) error {
	file := filepath.Join("/dev", n.Path)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	err := unix.Mknod(file, unix.S_IFCHR|0o600, int(unix.Mkdev(n.Major, n.Minor)))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make %s: %w", file, err)
	}
	return nil
}

// enableHugePages lets a memfd that asks for them have transparent huge pages,
// which the kernel's default denies.
func enableHugePages() error {
	const dir = "/sys/kernel/mm/transparent_hugepage/"
	return errors.Join(
		os.WriteFile(dir+"enabled", []byte("madvise"), 0),
		os.WriteFile(dir+"shmem_enabled", []byte("advise"), 0),
	)
}
