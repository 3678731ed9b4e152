// Package guest prepares what runs inside a guest: a Linux kernel with the
// modules that a virtual machine needs, and an initramfs with u-root's
// commands and godwit's own init.
//
// Everything is kept in a cache folder outside of the source tree (CacheDir):
//
//	kernels/VERSION/vmlinuz       the kernel as the distribution ships it
//	kernels/VERSION/config        its configuration, if shipped
//	kernels/VERSION/modules/      the modules, uncompressed
//	kernels/VERSION/guest.cpio    initramfs for guests
//	kernels/VERSION/host.cpio     initramfs for the emulated hosts of the lab
//	kernels/current               symbolic link to the VERSION in use
//	u-root/HASH.cpio              u-root's commands, built once
//
// The images themselves are built by the program guest/mkinitramfs, which
// links u-root's image builder and runs the Go toolchain; this package only
// runs that program, so that whoever imports it stays small.
package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/godwit-vmm/godwit/internal/durable"
)

// ErrNotCached is wrapped by errors about a kernel or initramfs that has not
// been prepared yet.
var ErrNotCached = errors.New("not prepared yet: run `godwit guest kernel` and `godwit guest initramfs` (or `make guest`)")

// CacheDir is the folder where kernels and images are kept: $GODWIT_CACHE, or
// godwit in the user's cache folder ($XDG_CACHE_HOME or ~/.cache).
func CacheDir() (string, error) {
	if dir := os.Getenv("GODWIT_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache folder: %w: set GODWIT_CACHE to a folder to use", err)
	}
	return filepath.Join(dir, "godwit"), nil
}

// replaceDir makes the folder temp take the place of final for good: the files
// reach the disk before the name does, so that a crash leaves the old folder,
// the new one, or none, and never half of one.
func replaceDir(temp, final string) error {
	if err := syncTree(temp); err != nil {
		return err
	}
	if err := os.RemoveAll(final); err != nil {
		return err
	}
	if err := os.Rename(temp, final); err != nil {
		return err
	}
	return durable.SyncPath(filepath.Dir(final))
}

// replaceLink makes link point at target, at once for every reader.
func replaceLink(target, link string) error {
	temp := fmt.Sprintf("%s.%d", link, os.Getpid())
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, temp); err != nil {
		return err
	}
	if err := os.Rename(temp, link); err != nil {
		return err
	}
	return durable.SyncPath(filepath.Dir(link))
}

func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return durable.SyncPath(path)
	})
}

// ReplaceFile writes a file so that a reader of the path sees the old content
// or the new one, whatever happens meanwhile.
func ReplaceFile(path string, content []byte) error {
	return durable.Replace(path, 0o644, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
}
