package agent

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// maxName bounds the length of names in a tree (PATH_MAX).
const maxName = 4096

// receiver puts a tar stream into a folder, and nowhere else: whoever sends it is
// not trusted.
type receiver struct {
	tar  *tar.Reader
	root *os.Root
	// top is the name of the first entry in the stream, and name what it is to
	// be called in root, "." for root itself.
	top, name string
	trusted   bool // special bits of modes are kept
	owners    bool // owners are kept
	progress  func(Copied)
	copied    Copied
	buf       []byte
	// open are the folders that the current entry lies in. They get their
	// modes and times when they are complete: before that there may be no
	// writing into them.
	open []*tar.Header
}

// receiveOptions say what is kept of a tree.
type receiveOptions struct {
	trusted, owners bool
	progress        func(Copied)
}

// receiveTree puts the tree that r has at dst: into it if it is a folder, and
// else as it. The contents of a folder, without its name, are put into dst in
// either case.
func receiveTree(r io.Reader, dst string, o receiveOptions) (Copied, error) {
	t := &receiver{tar: tar.NewReader(r), trusted: o.trusted, owners: o.owners, progress: o.progress, buf: make([]byte, 64<<10)}
	err := t.receive(dst)
	if t.root != nil {
		err = errors.Join(err, t.root.Close())
	}
	return t.copied, err
}

func (t *receiver) receive(dst string) error {
	h, err := t.tar.Next()
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	t.top = path.Clean(h.Name)
	if strings.Contains(t.top, "/") || t.top == ".." {
		return fmt.Errorf("%w: the first of the files is called %q", ErrCorrupt, h.Name)
	}
	if err := t.place(dst, h); err != nil {
		return err
	}
	for ; err == nil; h, err = t.tar.Next() {
		if err := t.entry(h); err != nil {
			return err
		}
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	return t.leave("")
}

// place decides where the tree goes.
func (t *receiver) place(dst string, h *tar.Header) error {
	isFolder := h.Typeflag == tar.TypeDir
	info, err := os.Stat(dst)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	folder := dst
	t.name = t.top
	switch {
	case missing && !isFolder && (strings.HasSuffix(dst, "/") || contentsOnly(dst)):
		return fmt.Errorf("there is no folder %s", dst)
	case missing, !isFolder && !info.IsDir():
		folder, t.name = filepath.Dir(filepath.Clean(dst)), filepath.Base(dst)
	case !info.IsDir():
		return fmt.Errorf("%s is no folder, and cannot have a folder in it", dst)
	}
	t.root, err = os.OpenRoot(folder)
	return err
}

// entry takes one entry.
func (t *receiver) entry(h *tar.Header) error {
	name := path.Clean(h.Name)
	rest, inside := strings.CutPrefix(name, t.top)
	if t.top == "." {
		rest, inside = "/"+name, filepath.IsLocal(name)
	}
	if !inside || rest != "" && rest[0] != '/' || !filepath.IsLocal(name) || len(name) > maxName {
		return fmt.Errorf("%w: %.100q does not lie in %q", ErrCorrupt, h.Name, t.top)
	}
	name = path.Join(t.name, rest)
	if err := t.leave(name); err != nil {
		return err
	}
	h.Name = name
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		err = t.folder(h)
	case tar.TypeReg:
		err = t.file(h)
	case tar.TypeSymlink:
		err = t.link(h)
	default:
		t.copied.Skipped++
		return nil
	}
	if err != nil {
		return err
	}
	t.copied.Files++
	t.report()
	return nil
}

// leave completes the folders that name does not lie in.
func (t *receiver) leave(name string) error {
	for n := len(t.open); n > 0; n-- {
		h := t.open[n-1]
		if name != "" && (h.Name == "." || strings.HasPrefix(name, h.Name+"/")) {
			return nil
		}
		t.open = t.open[:n-1]
		// With the owner, the special bits go.
		if err := t.chown(h.Name, h); err != nil {
			return err
		}
		if err := t.root.Chmod(h.Name, fileMode(h, t.trusted)); err != nil {
			return err
		}
		if err := t.root.Chtimes(h.Name, time.Time{}, h.ModTime); err != nil {
			return err
		}
	}
	return nil
}

// folder makes a folder. One that is there already stays as it is.
func (t *receiver) folder(h *tar.Header) error {
	err := t.root.Mkdir(h.Name, 0o700)
	if err == nil {
		t.open = append(t.open, h)
		return nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := t.root.Stat(h.Name)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no folder, and cannot be replaced by one", filepath.Join(t.root.Name(), h.Name))
	}
	return err
}

// file writes a file, under a temporary name until it is complete.
func (t *receiver) file(h *tar.Header) (err error) {
	temp := path.Join(path.Dir(h.Name), ".copy-"+nonceText())
	f, err := t.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.root.Remove(temp))
		}
	}()
	_, err = io.CopyBuffer(onlyWriter{&counter{f, t}}, onlyReader{t.tar}, t.buf)
	if err == nil {
		err = t.chown(temp, h)
	}
	if err == nil {
		err = f.Chmod(fileMode(h, t.trusted))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := t.root.Chtimes(temp, time.Time{}, h.ModTime); err != nil {
		return err
	}
	return t.root.Rename(temp, h.Name)
}

func (t *receiver) link(h *tar.Header) error {
	err := t.root.Symlink(h.Linkname, h.Name)
	if errors.Is(err, fs.ErrExist) {
		if info, err := t.root.Lstat(h.Name); err != nil || info.IsDir() {
			return errors.Join(err, fmt.Errorf("%s cannot be replaced by a symbolic link", filepath.Join(t.root.Name(), h.Name)))
		}
		if err := t.root.Remove(h.Name); err != nil {
			return err
		}
		err = t.root.Symlink(h.Linkname, h.Name)
	}
	if err != nil {
		return err
	}
	return t.chown(h.Name, h)
}

func (t *receiver) chown(name string, h *tar.Header) error {
	if !t.owners {
		return nil
	}
	return t.root.Lchown(name, h.Uid, h.Gid)
}

func (t *receiver) report() {
	if t.progress != nil {
		t.progress(t.copied)
	}
}

// counter counts what is written to a file.
type counter struct {
	io.Writer
	t *receiver
}

// Write counts what it passes on.
func (c *counter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.t.copied.Bytes += int64(n)
	c.t.report()
	return n, err
}

// owner of a file, as numbers.
func owner(info fs.FileInfo) (uid, gid int) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return 0, 0
}
