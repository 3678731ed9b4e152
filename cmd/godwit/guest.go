package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/godwit-vmm/godwit/guest"
	"github.com/spf13/cobra"
)

func newGuest() *cobra.Command {
	c := &cobra.Command{
		Use:   "guest",
		Short: "Prepare what runs inside guests: a kernel and an initramfs",
		Args:  cobra.NoArgs,
	}
	c.AddCommand(newGuestKernel(), newGuestInitramfs(), newGuestImage(), newGuestStatus())
	return c
}

func newGuestKernel() *cobra.Command {
	var host bool
	c := &cobra.Command{
		Use:   "kernel",
		Short: "Fetch the guest kernel and its modules into the cache",
		Long: `Fetch Debian's (on Ubuntu: Ubuntu's) kernel for virtual machines and its
modules with apt, without installing it, and keep it in the cache. With --host
take this host's own kernel from /boot instead. A kernel that is cached already
is kept.`,
		Example: "  godwit guest kernel\n  godwit guest kernel --host",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			k, err := guest.EnsureKernel(cmd.Context(), guest.Options{Host: host, Progress: os.Stderr})
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), k.Path)
			return nil
		},
	}
	c.Flags().BoolVar(&host, "host", false, "take this host's own kernel")
	return c
}

func newGuestInitramfs() *cobra.Command {
	var source string
	c := &cobra.Command{
		Use:   "initramfs",
		Short: "Build godwit's initramfs for the cached kernel",
		Long: `Build the initramfs with u-root: its commands, godwit's init and agent, and
the kernel's virtio modules. It needs Go and godwit's source tree, and takes
about half a minute; the result is cached until one of its inputs changes.`,
		Example: "  godwit guest initramfs",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := guest.BuildImages(cmd.Context(), source, guest.Options{Progress: os.Stderr}); err != nil {
				return err
			}
			k, err := guest.CachedKernel()
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), k.Image(guest.GuestImage))
			return nil
		},
	}
	c.Flags().StringVar(&source, "source", "", "`DIR` with a checkout of godwit to build from (default: the working directory)")
	return c
}

func newGuestStatus() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what the cache has",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s struct {
				Kernel    string `json:"kernel,omitempty"`
				Version   string `json:"version,omitempty"`
				Initramfs string `json:"initramfs,omitempty"`
			}
			if k, err := guest.CachedKernel(); err == nil {
				s.Kernel, s.Version = k.Path, k.Version
				s.Initramfs, _ = k.CachedImage(guest.GuestImage)
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return json.NewEncoder(out).Encode(s)
			}
			fmt.Fprintf(out, "kernel     %s\ninitramfs  %s\n", orNone(s.Kernel, "godwit guest kernel"), orNone(s.Initramfs, "godwit guest initramfs"))
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func orNone(path, command string) string {
	if path == "" {
		return "none; make it with: " + command
	}
	return path
}
