// Package initramfs builds the images that godwit's guests and the emulated
// hosts of the lab boot from: u-root's commands in one busybox, godwit's own
// init, and kernel modules.
//
// The package links u-root's image builder and runs the Go toolchain. Only
// the program guest/mkinitramfs imports it.
package initramfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/godwit-vmm/godwit/guest"
)

// module is the module whose checkout init is built from.
const module = "github.com/godwit-vmm/godwit"

// Options say what to build.
type Options struct {
	// Cache is the folder that holds the commands once they are built.
	Cache string
	// Kernel whose modules go in. The image is put beside it.
	Kernel guest.Kernel
	// Progress gets a line about each step that takes time; nil for none.
	Progress io.Writer
}

func (o Options) say(format string, args ...any) {
	if o.Progress != nil {
		fmt.Fprintf(o.Progress, format+"\n", args...)
	}
}

// Build builds all images for a kernel and gives their paths. It has to run in
// a checkout of the module. What has not changed is not built again: u-root's
// commands are kept under a hash of all that goes into them, and for the rest
// the Go toolchain has a cache of its own. An image whose content is the same
// is not touched.
func Build(ctx context.Context, o Options) ([]string, error) {
	archive, err := commandsArchive(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("initramfs: u-root commands: %w", err)
	}
	commands, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(archive)))
	if err != nil {
		return nil, fmt.Errorf("initramfs: u-root commands: %w", err)
	}
	own, err := buildPrograms(ctx)
	if err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	var paths []string
	for _, image := range guest.Images() {
		file := o.Kernel.Image(image)
		if err := writeImage(file, o.Kernel, image, slices.Concat(own, commands)); err != nil {
			return nil, fmt.Errorf("initramfs %s: %w", file, err)
		}
		paths = append(paths, file)
	}
	return paths, nil
}

// buildPrograms builds godwit's own programs for the guest.
func buildPrograms(ctx context.Context) ([]cpio.Record, error) {
	temp, err := os.MkdirTemp("", "godwit-guest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	var records []cpio.Record
	for _, p := range []struct{ source, path string }{
		{"guest/init", "init"},
		{"guest/sh", "bin/sh"},
	} {
		file := filepath.Join(temp, filepath.Base(p.path))
		cmd := goCommand(ctx, "build", "-trimpath", "-ldflags=-s -w", "-o", file, path.Join(module, p.source))
		if _, err := output(cmd); err != nil {
			return nil, err
		}
		program, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		records = append(records, cpio.StaticFile(p.path, string(program), 0o755))
	}
	return records, nil
}

// goCommand is a run of the Go toolchain for the guest, whatever machine this
// is.
func goCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	return cmd
}

// output runs a command and puts what it wrote to standard error into the
// error.
func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// writeImage puts an image together and, unless it is there already, writes it
// so that a reader of the file sees the old image or the new one.
func writeImage(file string, kernel guest.Kernel, image string, programs []cpio.Record) error {
	records, err := imageRecords(kernel, image, programs)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	w := cpio.Newc.Writer(&archive)
	cpio.MakeAllReproducible(records)
	if err := errors.Join(cpio.WriteRecordsAndDirs(w, records), cpio.WriteTrailer(w)); err != nil {
		return err
	}
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, archive.Bytes()) {
		return nil
	}
	return guest.ReplaceFile(file, archive.Bytes())
}
