package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// ownFiles is where the files of the initramfs are found once another root file
// system has taken their place.
const ownFiles = "/run/godwit"

// kept are the mounts that move into the root file system.
var kept = []string{"/proc", "/sys", "/dev", "/run"}

// enterRoot makes what is mounted on newRoot the root file system of all
// processes. The initramfs stays, at ownFiles.
func enterRoot() error {
	if err := os.MkdirAll(ownFiles, 0o755); err != nil {
		return err
	}
	// Not recursive: just the files.
	if err := unix.Mount("/", ownFiles, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("keep the initramfs: %w", err)
	}
	for _, dir := range kept {
		if err := os.Mkdir(filepath.Join(newRoot, dir), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("the root file system has no folder %s: %w", dir, err)
		}
	}
	for _, dir := range kept {
		if err := unix.Mount(dir, filepath.Join(newRoot, dir), "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s into the root file system: %w", dir, err)
		}
	}
	complain(unix.Unmount("/tmp", unix.MNT_DETACH))
	// The order of switch_root(8): programs that change roots themselves,
	// such as container runtimes, want no other root below this one.
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root file system to /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if errors.Is(unix.Access("/tmp", unix.W_OK), unix.EROFS) {
		// A disk that cannot be written is not a reason to have no
		// temporary files.
		complain(unix.Mount("tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"))
	}
	return nil
}

// initOf is the first program of the root file system that was entered, empty if
// it has none.
func initOf(o rootOptions) string {
	if o.init != "" {
		return o.init
	}
	for _, file := range []string{"/sbin/init", "/etc/init", "/bin/init"} {
		if unix.Access(file, unix.X_OK) == nil {
			return file
		}
	}
	return ""
}

// runInit becomes the init of the root file system that was entered, with the
// arguments and variables that the kernel has given. It returns only on failure.
func runInit(file string, kernelEnv []string) error {
	if err := unix.Access(file, unix.X_OK); err != nil {
		return fmt.Errorf("init %s of the root file system: %w", file, err)
	}
	complain(os.WriteFile("/proc/sys/kernel/modprobe", []byte("/sbin/modprobe"), 0))
	complain(freeInitramfs())
	err := syscall.Exec(file, append([]string{file}, os.Args[1:]...), kernelEnv)
	return fmt.Errorf("init %s of the root file system: %w", file, err)
}

// freeInitramfs removes the files of the initramfs, which take memory, and the
// place where they are found.
func freeInitramfs() error {
	var st unix.Statfs_t
	if err := unix.Statfs(ownFiles, &st); err != nil {
		return fmt.Errorf("free the initramfs: %w", err)
	}
	if st.Type != unix.RAMFS_MAGIC && st.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("free the initramfs: there is something else at %s", ownFiles)
	}
	entries, err := os.ReadDir(ownFiles)
	if err != nil {
		return fmt.Errorf("free the initramfs: %w", err)
	}
	for _, e := range entries {
		// Folders on which something is mounted stay: they take nothing.
		if err := os.RemoveAll(filepath.Join(ownFiles, e.Name())); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("free the initramfs: %w", err)
		}
	}
	if err := unix.Unmount(ownFiles, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("free the initramfs: %w", err)
	}
	return os.Remove(ownFiles)
}
