package agent

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Files and folders travel as a tar stream. Its first entry is what was asked
// for, by its name, or "./" if only the contents of a folder were; all other
// entries lie below that.

// Copied says how much was copied.
type Copied struct {
	// Files counts files, folders and symbolic links.
	Files int `json:"files"`
	// Bytes are those of the files' contents.
	Bytes int64 `json:"bytes"`
	// Skipped counts what cannot be copied: devices, pipes and sockets.
	Skipped int `json:"skipped"`
}

// sender writes a tree as a tar stream.
type sender struct {
	tar *tar.Writer
	// root is the path of the tree, and name what it is called in the stream.
	root, name string
	progress   func(Copied)
	copied     Copied
	buf        []byte
}

// sendTree writes what is at src to w. If src ends in "/." that is the contents
// of a folder, without its name. A symbolic link is followed if follow says so;
// those inside a folder never are. progress is called as it goes on.
func sendTree(w io.Writer, src string, follow bool, progress func(Copied)) (Copied, error) {
	buffered := bufio.NewWriterSize(w, maxData)
	s := &sender{tar: tar.NewWriter(buffered), root: filepath.Clean(src), progress: progress, buf: make([]byte, 64<<10)}
	s.name = filepath.Base(s.root)
	if contentsOnly(src) {
		s.name = "."
	}
	follow = follow || contentsOnly(src) || strings.HasSuffix(src, "/")
	if s.name == string(filepath.Separator) || s.name == ".." {
		s.name = "." // these have no name of their own
	}
	if follow {
		real, err := filepath.EvalSymlinks(s.root)
		if err != nil {
			return s.copied, err
		}
		s.root = real
	}
	err := filepath.WalkDir(s.root, func(file string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return s.send(file)
	})
	if err == nil {
		err = s.tar.Close()
	}
	if err == nil {
		err = buffered.Flush()
	}
	return s.copied, err
}

// contentsOnly tells whether a path means the contents of a folder.
func contentsOnly(path string) bool {
	return path == "." || strings.HasSuffix(path, "/.")
}

// send writes one entry.
func (s *sender) send(file string) error {
	info, err := os.Lstat(file)
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(s.root, file)
	if err != nil {
		return err
	}
	h := &tar.Header{
		Name: path.Join(s.name, filepath.ToSlash(rel)), ModTime: info.ModTime(), Mode: tarMode(info.Mode()),
	}
	h.Uid, h.Gid = owner(info)
	switch info.Mode().Type() {
	case 0:
		return s.sendFile(h, file)
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	case fs.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(file); err != nil {
			return err
		}
	default:
		s.copied.Skipped++
		return nil
	}
	if err := s.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	s.copied.Files++
	s.report()
	return nil
}

// sendFile writes a regular file.
func (s *sender) sendFile(h *tar.Header, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: it was a regular file a moment ago", file)
	}
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	if err := s.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	s.copied.Files++
	// What is appended meanwhile is left out.
	n, err := io.CopyBuffer(onlyWriter{s}, io.LimitReader(f, h.Size), s.buf)
	if err == nil && n < h.Size {
		err = errors.New("it has become shorter while it was copied")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// Write writes contents of a file.
func (s *sender) Write(p []byte) (int, error) {
	n, err := s.tar.Write(p)
	s.copied.Bytes += int64(n)
	s.report()
	return n, err
}

func (s *sender) report() {
	if s.progress != nil {
		s.progress(s.copied)
	}
}

// TreeSize is how many bytes the files of a tree have, as far as that can be told
// now.
func TreeSize(src string) (n int64) {
	// What cannot be looked at is said when it is to be copied.
	_ = filepath.WalkDir(src, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			n += info.Size()
		}
		return nil
	})
	return n
}

// The bits of a mode that tar has beside the permissions.
const (
	tarSetuid = 0o4000
	tarSetgid = 0o2000
	tarSticky = 0o1000
)

func tarMode(m fs.FileMode) int64 {
	mode := int64(m.Perm())
	for bit, tar := range specialBits {
		if m&bit != 0 {
			mode |= tar
		}
	}
	return mode
}

var specialBits = map[fs.FileMode]int64{fs.ModeSetuid: tarSetuid, fs.ModeSetgid: tarSetgid, fs.ModeSticky: tarSticky}

// fileMode is the mode of an entry: its permissions, and the special bits if they
// are wanted.
func fileMode(h *tar.Header, special bool) fs.FileMode {
	mode := fs.FileMode(h.Mode) & fs.ModePerm
	for bit, tar := range specialBits {
		if special && h.Mode&tar != 0 {
			mode |= bit
		}
	}
	return mode
}
