package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/godwit-vmm/godwit/guest/disk"
	"github.com/godwit-vmm/godwit/internal/flags"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

func newGuestImage() *cobra.Command {
	var size flags.Size
	var output string
	var o disk.Options
	c := &cobra.Command{
		Use:   "image DIR|TARBALL -o FILE",
		Short: "Make an ext4 disk image from a folder or a tar archive",
		Long: `Make a disk image with an ext4 file system that holds a folder or a tar archive
(compressed or not), without root. The image is sparse; an image that is there
is replaced when the new one is complete.

Owners, device files and extended attributes come from the archive. In a folder,
what belongs to you belongs to root in the image.

"godwit boot --root FILE" boots a guest from it: the image's own init if it has
one, else a shell, or with "-- COMMAND" that command. It needs e2fsprogs.`,
		Example: `  godwit guest image rootfs.tar.xz -o disk.img --size 4G
  docker export CONTAINER | gzip > root.tgz && godwit guest image root.tgz -o disk.img`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output == "" {
				return errors.New("which file? give it with -o FILE")
			}
			o.Size = uint64(size)
			if term.IsTerminal(int(os.Stderr.Fd())) {
				o.Progress = os.Stderr
			}
			// So that nothing temporary is left behind.
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			if err := disk.Build(ctx, args[0], output, o); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), output)
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&output, "output", "o", "", "image `FILE` to write")
	f.Var(&size, "size", "size of the image, such as 1G (default: what the content needs, and 256 MiB)")
	f.StringVar(&o.Label, "label", "", "label of the file system, up to 16 bytes; a guest finds it by root=LABEL=...")
	f.StringVar(&o.UUID, "uuid", "", "UUID of the file system (default: a random one)")
	return c
}
