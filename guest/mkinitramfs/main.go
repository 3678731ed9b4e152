// Mkinitramfs builds the initramfs images for the cached guest kernel. Run it
// in a checkout of the module:
//
//	go run github.com/godwit-vmm/godwit/guest/mkinitramfs
//
// It is a program of its own so that no other has to link the image builder.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/godwit-vmm/godwit/guest"
	"github.com/godwit-vmm/godwit/guest/initramfs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := build(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "mkinitramfs: %v\n", err)
		os.Exit(1)
	}
}

func build(ctx context.Context) error {
	cache, err := guest.CacheDir()
	if err != nil {
		return err
	}
	kernel, err := guest.CachedKernel()
	if err != nil {
		return err
	}
	paths, err := initramfs.Build(ctx, initramfs.Options{Cache: cache, Kernel: kernel, Progress: os.Stderr})
	if err != nil {
		return err
	}
	for _, p := range paths {
		fmt.Println(p)
	}
	return nil
}
