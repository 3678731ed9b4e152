package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// endPatience is how long processes have to end when they are asked to, and how
// long when they are made to.
const endPatience = 2 * time.Second

// endProcesses ends all processes but this one.
func endProcesses() error {
	// Interactive shells end by a hang-up only.
	for _, s := range [][]unix.Signal{{unix.SIGTERM, unix.SIGHUP, unix.SIGCONT}, {unix.SIGKILL}} {
		running, err := openProcesses()
		if err != nil {
			return err
		}
		for _, fd := range running {
			for _, signal := range s {
				// One that has ended meanwhile is fine.
				_ = unix.PidfdSendSignal(fd, signal, nil, 0)
			}
		}
		awaitAll(running, endPatience)
		for _, fd := range running {
			unix.Close(fd)
		}
	}
	return nil
}

// openProcesses gives a descriptor for each process but this one and the threads
// of the kernel.
func openProcesses() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("end processes: %w", err)
	}
	var fds []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// Threads of the kernel have no program.
		if _, err := os.Readlink("/proc/" + e.Name() + "/exe"); err != nil {
			continue
		}
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			fds = append(fds, fd)
		}
	}
	return fds, nil
}

// awaitAll waits for the end of processes, which makes their descriptors
// readable.
func awaitAll(fds []int, patience time.Duration) {
	deadline := time.Now().Add(patience)
	for _, fd := range fds {
		// An error is the deadline's.
		_ = pollFor(fd, time.Until(deadline))
	}
}

// settleDisks brings every file system on a disk into the state that it would
// have when unmounted. They are frozen, which works also when files are open,
// the latest mounts first, since one may lie in another.
func settleDisks() error {
	unix.Sync()
	list, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("settle the disks: %w", err)
	}
	var errs []error
	mounts := diskMounts(string(list))
	for i := len(mounts) - 1; i >= 0; i-- {
		if err := settle(mounts[i]); err != nil {
			errs = append(errs, fmt.Errorf("settle the file system on %s: %w", mounts[i], err))
		}
	}
	return errors.Join(errs...)
}

// fiFreeze is FIFREEZE of linux/fs.h: write everything, journal included, and
// hold all writers.
const fiFreeze = 0xc0045877

func settle(mountPoint string) error {
	fd, err := unix.Open(mountPoint, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = unix.IoctlSetInt(fd, fiFreeze, 0)
	unix.Close(fd)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		return unix.Mount("", mountPoint, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	return err
}

// diskMounts are the mount points of the file systems that are on a device and
// can be written, one for each, from /proc/self/mountinfo (proc(5)).
func diskMounts(mountinfo string) []string {
	var points []string
	seen := make(map[string]bool)
	for line := range strings.Lines(mountinfo) {
		mount, super, ok := strings.Cut(line, " - ")
		fields, superFields := strings.Fields(mount), strings.Fields(super)
		if !ok || len(fields) < 6 || len(superFields) < 3 {
			continue
		}
		device := fields[2]
		// File systems without a device have the major number 0, and those
		// that are written the option rw in their superblock.
		writable := strings.HasPrefix(superFields[2]+",", "rw,")
		if strings.HasPrefix(device, "0:") || !writable || seen[device] {
			continue
		}
		seen[device] = true
		points = append(points, unescapeMount(fields[4]))
	}
	return points
}

// unescapeMount undoes the octal escapes of spaces and the like.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
