package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// newRoot is where the root file system is mounted first.
	newRoot = "/newroot"
	// rootTimeout is how long to wait for the root device, unless the
	// command line says rootwait. A virtual machine's disks are there at
	// once.
	rootTimeout = 10 * time.Second
)

// rootOptions are the words on the kernel's command line about the root file
// system, as the kernel and every initramfs know them.
type rootOptions struct {
	device string // root=: /dev/NAME, UUID=... or LABEL=...; none if empty
	fstype string // rootfstype=: names, separated by commas
	flags  string // rootflags=: mount options
	init   string // init=: the first program
	rw     bool   // rw or ro
	wait   bool   // rootwait
}

// mountRoot waits for the root device and mounts it on newRoot.
func mountRoot(o rootOptions) error {
	timeout := rootTimeout
	if o.wait {
		timeout = -1
	}
	device, err := waitForDevice(o.device, timeout)
	if err != nil {
		return fmt.Errorf("root=%s: %w", o.device, err)
	}
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return fmt.Errorf("root=%s: %w", o.device, err)
	}
	types, err := o.types()
	if err != nil {
		return fmt.Errorf("root=%s: %w", o.device, err)
	}
	if err := mountAs(device, types, o); err != nil {
		return fmt.Errorf("root=%s: mount %s: %w", o.device, device, err)
	}
	return nil
}

// types are the file systems to try.
func (o rootOptions) types() ([]string, error) {
	if o.fstype != "" {
		return strings.Split(o.fstype, ","), nil
	}
	list, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return nil, err
	}
	return blockTypes(string(list)), nil
}

// blockTypes are the file systems of /proc/filesystems that live on a device.
// First come the likely ones, also because the ext4 driver complains when asked
// for an ext2; squashfs may be a module, which the kernel loads when asked.
func blockTypes(list string) []string {
	types := []string{"ext4", "squashfs"}
	for line := range strings.Lines(list) {
		if name, device := strings.CutPrefix(line, "\t"); device {
			if name = strings.TrimSpace(name); name != "ext4" && name != "squashfs" {
				types = append(types, name)
			}
		}
	}
	return types
}

// mountAs mounts the device as the first of the types that it can be mounted as,
// read-only if it cannot be written.
func mountAs(device string, types []string, o rootOptions) error {
	flags, data := parseMountOptions(o.flags)
	if !o.rw {
		flags |= unix.MS_RDONLY
	}
	for _, fstype := range types {
		err := unix.Mount(device, newRoot, fstype, flags|unix.MS_SILENT, data)
		if (errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES)) && flags&unix.MS_RDONLY == 0 {
			complain(fmt.Errorf("root file system: %s can only be read", device))
			flags |= unix.MS_RDONLY
			err = unix.Mount(device, newRoot, fstype, flags|unix.MS_SILENT, data)
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENODEV):
			// Not this type, or no such type in this kernel.
		default:
			return fmt.Errorf("as %s: %w", fstype, err)
		}
	}
	return fmt.Errorf("no file system that this kernel knows (tried %s), or wrong rootflags", strings.Join(types, ", "))
}

// mountFlags are the mount options that are not the file system's.
var mountFlags = map[string]uintptr{
	"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "sync": unix.MS_SYNCHRONOUS,
	"dirsync": unix.MS_DIRSYNC, "noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
	"strictatime": unix.MS_STRICTATIME, "lazytime": unix.MS_LAZYTIME, "defaults": 0, "rw": 0,
}

// parseMountOptions splits mount options into flags and what is left for the file
// system.
func parseMountOptions(options string) (flags uintptr, data string) {
	var left []string
	for option := range strings.SplitSeq(options, ",") {
		if flag, ok := mountFlags[option]; ok {
			flags |= flag
		} else if option != "" {
			left = append(left, option)
		}
	}
	return flags, strings.Join(left, ",")
}

// waitForDevice waits until the device that spec describes is there, for ever if
// the timeout is negative, and returns its path.
func waitForDevice(spec string, timeout time.Duration) (string, error) {
	find, err := finder(spec)
	if err != nil {
		return "", err
	}
	// From before the first look, so that no device can slip in between.
	events, err := openUevents()
	if err != nil {
		return "", err
	}
	defer events.close()
	deadline := time.Now().Add(timeout)
	for {
		device := find()
		if device != "" {
			return device, nil
		}
		left := time.Until(deadline)
		if timeout < 0 {
			left = time.Hour
		}
		if left <= 0 {
			return "", fmt.Errorf("no such device after %v; there is %s", timeout, deviceList())
		}
		if err := events.wait(left); err != nil {
			return "", err
		}
	}
}

// finder returns a function that looks for a device and returns its path, or
// nothing.
func finder(spec string) (func() string, error) {
	key, value, _ := strings.Cut(spec, "=")
	switch {
	case filepath.Dir(spec) == "/dev":
		return func() string {
			if info, err := os.Stat(spec); err != nil || info.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice {
				return ""
			}
			return spec
		}, nil
	case key == "UUID" && value != "":
		return func() string {
			return findFileSystem(func(s superblock) bool { return strings.EqualFold(s.uuid, value) })
		}, nil
	case key == "LABEL" && value != "":
		return func() string { return findFileSystem(func(s superblock) bool { return s.label == value }) }, nil
	}
	return nil, errors.New("want /dev/NAME, UUID=ID or LABEL=NAME")
}

// blockDevices are the names of all block devices.
func blockDevices() []string {
	// The pattern is fixed, so Glob cannot fail.
	paths, _ := filepath.Glob("/sys/class/block/*")
	for i, p := range paths {
		paths[i] = filepath.Base(p)
	}
	return paths
}

func deviceList() string {
	if names := blockDevices(); len(names) > 0 {
		return strings.Join(names, ", ")
	}
	return "no disk at all"
}

// findFileSystem returns the path of a device whose file system is the wanted
// one.
func findFileSystem(want func(superblock) bool) string {
	for _, name := range blockDevices() {
		device := filepath.Join("/dev", name)
		// A drive without a medium cannot be opened.
		if s, err := readSuperblock(device); err == nil && want(s) {
			return device
		}
	}
	return ""
}
