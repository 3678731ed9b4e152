// Package disk makes disk images with an ext4 file system from a folder or a tar
// archive, without privileges.
//
// mkfs.ext4 copies the tree into the new file system (its option -d). What a
// user without privileges cannot have in a tree, owners above all and device
// files, debugfs writes into the image afterwards. Both are parts of e2fsprogs,
// as is the e2fsck that decides what a sound ext4 is; no Go library writes ext4
// with a journal as long proven. mkfs.ext4 reads tar archives itself since
// 1.47.1, if it was built so; unpacking them here works with every version.
package disk

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	// MinSize is the smallest image in bytes: room for a journal.
	MinSize = 8 << 20
	// MaxSize is the largest: that of an ext4 with blocks of 4 KiB and
	// 32-bit block numbers.
	MaxSize = 16 << 40
	// blockSize is the unit of the file system, a page, for images of any
	// size: mkfs.ext4 would take less for small ones.
	blockSize = 4096
	// slack is how much room there is by default beside the content. The
	// image is sparse: what is not used takes no space.
	slack = 256 << 20
	// maxLabel is how long a label may be.
	maxLabel = 16
)

// Options say what the image is like.
type Options struct {
	// Size of the image in bytes, a multiple of 4096; 0 is as much as the
	// content needs, and some room.
	Size uint64
	// Label of the file system, up to 16 bytes.
	Label string
	// UUID of the file system; a random one if empty.
	UUID string
	// Progress gets a line about each step; nil for none.
	Progress io.Writer
}

func (o Options) say(format string, args ...any) {
	if o.Progress != nil {
		fmt.Fprintf(o.Progress, format+"\n", args...)
	}
}

// Build makes the image file from source, which is a folder or a tar archive,
// compressed or not. An image that is there already is replaced once the new one
// is complete and on the disk; one that is in use keeps its content.
//
// Files keep their owners, except that what belongs to the user who runs Build
// belongs to root in an image made from a folder, so that root's files need not
// be made by root.
func Build(ctx context.Context, source, image string, o Options) error {
	if err := build(ctx, source, image, o); err != nil {
		return fmt.Errorf("image %s of %s: %w", image, source, err)
	}
	return nil
}

func build(ctx context.Context, source, image string, o Options) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	if old, err := os.Stat(image); err == nil && !old.Mode().IsRegular() {
		return fmt.Errorf("%s is there and not a regular file", image)
	}
	tools, err := findTools()
	if err != nil {
		return err
	}
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	// Beside the image there is room for what is as large as the image.
	temp, err := os.MkdirTemp(filepath.Dir(image), ".godwit-image-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()

	tree, changes := source, []change(nil)
	if info.IsDir() {
		changes, err = ownersOf(source)
	} else {
		o.say("unpacking %s", source)
		tree = filepath.Join(temp, "tree")
		changes, err = unpack(ctx, source, tree)
		defer makeRemovable(tree)
	}
	if err != nil {
		return err
	}
	content, err := measure(tree)
	if err != nil {
		return err
	}
	content.files += uint64(len(changes))
	if o.Size == 0 {
		o.Size = content.imageSize()
	}
	o.say("making an ext4 of %d MiB with %d files, %d MiB", o.Size>>20, content.files, content.bytes>>20)
	file := filepath.Join(temp, "image")
	if err := tools.makeFS(ctx, tree, file, content, o); err != nil {
		return err
	}
	if err := tools.apply(ctx, file, filepath.Join(temp, "changes"), changes); err != nil {
		return err
	}
	return publish(file, image)
}

// validUUID tells whether s is a UUID in its usual form.
func validUUID(s string) bool {
	for i, c := range []byte(s) {
		switch {
		case i == 8, i == 13, i == 18, i == 23:
			if c != '-' {
				return false
			}
		case '0' <= c && c <= '9', 'a' <= c && c <= 'f', 'A' <= c && c <= 'F':
		default:
			return false
		}
	}
	return len(s) == 36
}

func (o Options) check() error {
	switch {
	case o.Size != 0 && (o.Size < MinSize || o.Size > MaxSize):
		return fmt.Errorf("size of %d bytes: want between %d MiB and %d TiB", o.Size, MinSize>>20, MaxSize>>40)
	case o.Size%blockSize != 0:
		return fmt.Errorf("size of %d bytes is not a multiple of %d", o.Size, blockSize)
	case len(o.Label) > maxLabel:
		return fmt.Errorf("label %q is longer than %d bytes", o.Label, maxLabel)
	case o.UUID != "" && !validUUID(o.UUID):
		return fmt.Errorf("UUID %q: want one such as 01234567-89ab-cdef-0123-456789abcdef", o.UUID)
	}
	return nil
}

// tools are the programs of e2fsprogs.
type tools struct{ mkfs, debugfs string }

func findTools() (tools, error) {
	// The folders for administrators, which a user often has not in the PATH.
	folders := []string{"/usr/sbin", "/sbin"}
	mkfs, mkfsErr := findTool("mkfs.ext4", folders...)
	debugfs, debugfsErr := findTool("debugfs", folders...)
	return tools{mkfs, debugfs}, cmp.Or(mkfsErr, debugfsErr)
}

// findTool finds a program in the PATH or in one of the folders.
func findTool(name string, folders ...string) (string, error) {
	if found, err := exec.LookPath(name); err == nil {
		return found, nil
	}
	for _, dir := range folders {
		if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: install e2fsprogs (apt-get install e2fsprogs)", name)
}

// makeFS makes the file with the file system and the tree in it.
func (t tools) makeFS(ctx context.Context, tree, file string, content content, o Options) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(int64(o.Size)), f.Close()); err != nil {
		return err
	}
	args := []string{"-q", "-F", "-b", fmt.Sprint(blockSize), "-m", "1", "-N", fmt.Sprint(content.inodes(o.Size)), "-d", tree}
	if o.Label != "" {
		args = append(args, "-L", o.Label)
	}
	if o.UUID != "" {
		args = append(args, "-U", o.UUID, "-E", "root_owner=0:0,hash_seed="+o.UUID)
	} else {
		args = append(args, "-E", "root_owner=0:0")
	}
	if _, err := run(ctx, t.mkfs, append(args, file)...); err != nil {
		if need := content.bytes + content.files*inodeSize; need > o.Size/4*3 {
			return fmt.Errorf("%w: %d MiB of content may be too much for a size of %d MiB", err, need>>20, o.Size>>20)
		}
		return err
	}
	return nil
}

// run runs a program and returns what it wrote to standard error, which is part
// of the error if it fails.
func run(ctx context.Context, name string, args ...string) (string, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	// The messages are looked at.
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stderr = &stderr
	err := cmd.Run()
	text := strings.TrimSpace(stderr.String())
	if err != nil {
		return text, fmt.Errorf("%s: %w: %s", filepath.Base(name), err, text)
	}
	return text, nil
}

// publish gives the finished image its name.
func publish(file, image string) error {
	if err := syncPath(file); err != nil {
		return err
	}
	if err := os.Rename(file, image); err != nil {
		return err
	}
	return syncPath(filepath.Dir(image))
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
