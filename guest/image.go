package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// The images that exist for each kernel.
const (
	// GuestImage is what godwit's guests boot from.
	GuestImage = "guest"
	// HostImage is what the emulated hosts of the lab boot from: it can
	// run virtual machines itself.
	HostImage = "host"
)

// Images lists all images.
func Images() []string { return []string{GuestImage, HostImage} }

// Image is the path of an image for this kernel, which is there once
// BuildImages has run.
func (k Kernel) Image(name string) string {
	return filepath.Join(k.Dir(), name+".cpio")
}

// CachedImage is the path of an image for this kernel. The error wraps
// ErrNotCached if it has not been built.
func (k Kernel) CachedImage(name string) (string, error) {
	path := k.Image(name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("initramfs %s: %w", path, ErrNotCached)
	}
	return path, nil
}

// BuildImages builds the images for the current kernel, as far as something
// changed since the last time. It runs the Go toolchain in the checkout of
// godwit that source is in; the working directory if empty.
func BuildImages(ctx context.Context, source string, o Options) error {
	cache, err := o.cache()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "run", "github.com/godwit-vmm/godwit/guest/mkinitramfs")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "GODWIT_CACHE="+cache)
	cmd.Stdout, cmd.Stderr = o.Progress, o.Progress
	err = cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("build the initramfs: the Go toolchain is needed for it: %w", err)
	}
	if err != nil {
		return fmt.Errorf("build the initramfs: go run guest/mkinitramfs (in a checkout of godwit): %w", err)
	}
	return nil
}
