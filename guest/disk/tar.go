package disk

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxDevice is the largest device number that debugfs takes.
const maxDevice = 1<<16 - 1

// unpacker puts the files of a tar archive into a folder, and remembers what a
// user without privileges cannot give them.
type unpacker struct {
	root *os.Root
	// headers are the last ones for each path, and order the paths in the
	// order of the archive.
	headers map[string]*tar.Header
	order   []string
}

// unpack unpacks an archive into the new folder dir and returns what is left to
// be changed in the image. Nothing outside of dir is touched, whatever the
// archive holds.
func unpack(ctx context.Context, archive, dir string) ([]change, error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	in, end, err := uncompress(ctx, f)
	if err != nil {
		return nil, err
	}
	u := &unpacker{root: root, headers: make(map[string]*tar.Header)}
	err = errors.Join(u.readAll(ctx, tar.NewReader(in)), end())
	if err != nil {
		return nil, err
	}
	return u.finish()
}

// uncompress finds out by the first bytes how an archive is compressed. After
// the last read, end returns the error of the program that uncompresses.
func uncompress(ctx context.Context, f io.Reader) (in io.Reader, end func() error, _ error) {
	r := bufio.NewReaderSize(f, 1<<20)
	// A shorter file is no archive, which the reader of archives will tell.
	magic, _ := r.Peek(6)
	none := func() error { return nil }
	switch {
	case bytes.HasPrefix(magic, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(r)
		return z, none, err
	case bytes.HasPrefix(magic, []byte("BZh")):
		return bzip2.NewReader(r), none, nil
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		return pipe(ctx, "xz", r)
	case bytes.HasPrefix(magic, []byte("\x28\xb5\x2f\xfd")):
		return pipe(ctx, "zstd", r)
	}
	return r, none, nil
}

// pipe uncompresses by a program.
func pipe(ctx context.Context, program string, in io.Reader) (io.Reader, func() error, error) {
	cmd := exec.CommandContext(ctx, program, "-dc")
	cmd.Stdin = in
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("uncompress with %s (is it installed?): %w", program, err)
	}
	return out, func() error {
		// What is behind the end of the archive; the program waits for a
		// reader.
		_, drained := io.Copy(io.Discard, out)
		if err := errors.Join(drained, cmd.Wait()); err != nil {
			return fmt.Errorf("uncompress with %s: %w: %s", program, err, strings.TrimSpace(stderr.String()))
		}
		return nil
	}, nil
}

func (u *unpacker) readAll(ctx context.Context, in *tar.Reader) error {
	for {
		h, err := in.Next()
		switch {
		case errors.Is(err, io.EOF) && len(u.order) == 0:
			return errors.New("the archive is empty, or not a tar archive")
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read the tar archive: %w", err)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if err := u.add(h, in); err != nil {
			return fmt.Errorf("unpack %s: %w", h.Name, err)
		}
	}
}

// clean makes a path that begins at the root of the archive, "." for that.
func clean(name string) string {
	if name = path.Clean("/" + name)[1:]; name == "" {
		return "."
	}
	return name
}

// add unpacks one file.
func (u *unpacker) add(h *tar.Header, content io.Reader) error {
	name := clean(h.Name)
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if err := u.addParents(name); err != nil {
		return err
	}
	if err := u.makeWay(name, h.Typeflag == tar.TypeDir); err != nil {
		return err
	}
	if err := u.create(h, name, content); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		// It is the same file, whose attributes are with its other name.
		delete(u.headers, name)
		return nil
	}
	u.note(name, h)
	return nil
}

func (u *unpacker) note(name string, h *tar.Header) {
	if u.headers[name] == nil {
		u.order = append(u.order, name)
	}
	u.headers[name] = h
}

// addParents makes the folders around a file that the archive has not listed
// before.
func (u *unpacker) addParents(name string) error {
	dir := path.Dir(name)
	if dir == "." {
		return nil
	}
	if _, err := u.root.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := u.addParents(dir); err != nil {
		return err
	}
	u.note(dir, &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Now()})
	return u.root.Mkdir(dir, 0o755)
}

// makeWay removes what an earlier entry of the same name has put there. Folders
// stay where the new entry is one too.
func (u *unpacker) makeWay(name string, dir bool) error {
	info, err := u.root.Lstat(name)
	switch {
	case name == "." && !dir:
		return errors.New("the root is not a folder")
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir() && dir:
		return nil
	}
	return u.root.Remove(name)
}

func (u *unpacker) create(h *tar.Header, name string, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		if err := u.root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case tar.TypeReg, tar.TypeGNUSparse:
		f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		return errors.Join(err, f.Close())
	case tar.TypeSymlink:
		return u.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		target := clean(h.Linkname)
		if t := u.headers[target]; t != nil && nodeOf(t) != "" {
			return fmt.Errorf("hard link to the device file %s", target)
		}
		return u.root.Link(target, name)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if max(h.Devmajor, h.Devminor) > maxDevice || min(h.Devmajor, h.Devminor) < 0 {
			return fmt.Errorf("device number %d:%d: debugfs makes none above %d", h.Devmajor, h.Devminor, maxDevice)
		}
		return nil // made in the image
	}
	return fmt.Errorf("a tar entry of type %q is nothing that a file system has", h.Typeflag)
}

// finish gives the files in the tree what they can have there, and returns the
// changes for the rest. It goes backwards, so that what a folder holds comes
// before the folder, which may forbid changes.
func (u *unpacker) finish() ([]change, error) {
	var changes []change
	for i := len(u.order) - 1; i >= 0; i-- {
		name := u.order[i]
		h := u.headers[name]
		if h == nil {
			continue // another name of a file since
		}
		c := change{path: name, xattrs: xattrsOf(h)}
		// mkfs.ext4 does not copy the attributes of the root.
		if c.node = nodeOf(h); c.node != "" || name == "." {
			c.set("mtime", h.ModTime.Unix())
			c.setAccess(h, &syscall.Stat_t{Mode: 0, Uid: noOwner, Gid: noOwner})
		} else if err := u.settle(h, name, &c); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", name, err)
		}
		if !c.isEmpty() {
			changes = append(changes, c)
		}
	}
	return changes, nil
}

// noOwner is no user's number.
const noOwner = 1<<32 - 1

// setAccess sets the mode and the owners of an entry where they are others than
// those in the tree.
func (c *change) setAccess(h *tar.Header, in *syscall.Stat_t) {
	if mode := modeOf(h); mode != in.Mode {
		c.set("mode", mode)
	}
	if h.Uid != int(in.Uid) {
		c.set("uid", h.Uid)
	}
	if h.Gid != int(in.Gid) {
		c.set("gid", h.Gid)
	}
}

// settle gives a file in the tree its time and its permissions, as far as
// mkfs.ext4 can still read it.
func (u *unpacker) settle(h *tar.Header, name string, c *change) error {
	if h.Typeflag != tar.TypeSymlink {
		perm := fs.FileMode(h.Mode)&0o777 | 0o400
		if h.Typeflag == tar.TypeDir {
			perm |= 0o500
		}
		if err := errors.Join(u.root.Chtimes(name, time.Time{}, h.ModTime), u.root.Chmod(name, perm)); err != nil {
			return err
		}
	}
	info, err := u.root.Lstat(name)
	if err != nil {
		return err
	}
	c.setAccess(h, info.Sys().(*syscall.Stat_t))
	return nil
}

// typeBits are those of a mode by the type of an entry.
var typeBits = map[byte]uint32{
	tar.TypeReg: unix.S_IFREG, tar.TypeGNUSparse: unix.S_IFREG, tar.TypeDir: unix.S_IFDIR, tar.TypeSymlink: unix.S_IFLNK,
	tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO,
}

// modeOf is the mode of a file as its inode has it.
func modeOf(h *tar.Header) uint32 { return uint32(h.Mode)&0o7777 | typeBits[h.Typeflag] }

// nodeOf is what mknod in debugfs takes to make a device file or pipe, and nothing
// for an entry that is none.
func nodeOf(h *tar.Header) string {
	switch h.Typeflag {
	case tar.TypeChar:
		return fmt.Sprintf("c %d %d", h.Devmajor, h.Devminor)
	case tar.TypeBlock:
		return fmt.Sprintf("b %d %d", h.Devmajor, h.Devminor)
	case tar.TypeFifo:
		return "p"
	}
	return ""
}

// xattrsOf are the extended attributes of an entry. Those of the system, which
// are access control lists, have another form in an inode and are left out.
func xattrsOf(h *tar.Header) map[string]string {
	const prefix = "SCHILY.xattr."
	var xattrs map[string]string
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, prefix)
		if !ok || strings.HasPrefix(name, "system.") {
			continue
		}
		if xattrs == nil {
			xattrs = make(map[string]string)
		}
		xattrs[name] = value
	}
	return xattrs
}
