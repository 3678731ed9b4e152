package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/godwit-vmm/godwit/guest/kmod"
)

// GuestModules are the kernel modules that a guest may need, by the kernel's
// names. What they depend on comes along; one that the kernel has built in or
// lacks is no error.
func GuestModules() []string {
	return []string{
		"virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng",
		"virtio_balloon", "virtio_mem", "virtio_pmem", "virtiofs", "vmw_vsock_virtio_transport",
		"ext4", "overlay", "squashfs", "loop", "ptp_kvm",
		// The power button: ACPI device, and its input events.
		"button", "evdev",
		"pvpanic_pci",
	}
}

// HostModules are the modules that an emulated host of the lab needs on top of
// GuestModules to run virtual machines itself.
func HostModules() []string {
	return []string{
		"kvm_amd", "kvm_intel", "tun", "tap", "bridge", "vhost_net", "vhost_vsock", "vsock_loopback",
	}
}

// stageModules copies the wanted modules and what they need from a module tree
// into the flat folder to, uncompressed.
func stageModules(ctx context.Context, from, to string) error {
	paths, err := moduleFiles(from)
	if err != nil {
		return err
	}
	pending := append(GuestModules(), HostModules()...)
	done := make(map[string]bool)
	for len(pending) > 0 {
		name := pending[0]
		pending = pending[1:]
		if done[name] || paths[name] == "" {
			continue
		}
		done[name] = true
		file := filepath.Join(to, name+".ko")
		if err := uncompress(ctx, paths[name], file); err != nil {
			return err
		}
		info, err := kmod.ReadModinfo(file)
		if err != nil {
			return err
		}
		pending = append(pending, info.Depends...)
	}
	return nil
}

// moduleFiles maps the names of all modules in a tree to their files. A kernel
// without modules has no tree.
func moduleFiles(dir string) (map[string]string, error) {
	paths := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && path == dir:
			return fs.SkipAll
		case err != nil:
			return err
		case slices.Contains([]string{".ko", ".xz", ".zst", ".gz"}, filepath.Ext(path)) && strings.Contains(filepath.Base(path), ".ko"):
			paths[kmod.Name(path)] = path
		}
		return nil
	})
	return paths, err
}

// uncompress copies a module, through the system's decompressor for its format
// if it is compressed.
func uncompress(ctx context.Context, from, to string) error {
	tools := map[string]string{".xz": "xz", ".zst": "zstd", ".gz": "gzip"}
	tool, ok := tools[filepath.Ext(from)]
	if !ok {
		return copyFile(from, to)
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, tool, "-dc", from)
	cmd.Stdout = out
	if err := errors.Join(run(cmd), out.Close()); err != nil {
		return fmt.Errorf("uncompress %s (is %s installed?): %w", from, tool, err)
	}
	return nil
}
