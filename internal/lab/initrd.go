package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/guest"
)

// File is a file to put into a host.
type File struct {
	// To is the absolute path in the host.
	To string
	// From is the file here whose content and permissions it gets.
	From string
	// Link makes it a symbolic link to this path instead.
	Link string
}

// GodwitFiles are the files with which the program godwit can boot guests in a
// host: the program, and the kernel and initramfs where it looks for them.
func GodwitFiles(program string, kernel guest.Kernel) ([]File, error) {
	image, err := kernel.CachedImage(guest.GuestImage)
	if err != nil {
		return nil, err
	}
	// User networking needs this one; not every build has it.
	helper := filepath.Join(filepath.Dir(program), "godwit-net")
	const (
		bin     = "/usr/local/bin"
		kernels = "/root/.cache/godwit/kernels"
	)
	dir := filepath.Join(kernels, kernel.Version)
	files := []File{
		{To: filepath.Join(bin, "godwit"), From: program},
		{To: filepath.Join(dir, filepath.Base(kernel.Path)), From: kernel.Path},
		{To: filepath.Join(dir, filepath.Base(image)), From: image},
		{To: filepath.Join(kernels, "current"), Link: kernel.Version},
	}
	if _, err := os.Stat(helper); err == nil {
		files = append(files, File{To: filepath.Join(bin, filepath.Base(helper)), From: helper})
	}
	return files, nil
}

// composeInitrd makes the initramfs of a host: the image from the cache with an
// archive of its own files behind it, which the kernel unpacks as well. It is a
// file without a name.
func composeInitrd(o Options) (*os.File, error) {
	image, err := o.Kernel.CachedImage(guest.HostImage)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("initrd", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("initrd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "initrd")
	if err := writeInitrd(f, image, o); err != nil {
		return nil, errors.Join(fmt.Errorf("initrd: %w", err), f.Close())
	}
	return f, nil
}

func writeInitrd(w io.Writer, image string, o Options) error {
	base, err := os.Open(image)
	if err != nil {
		return err
	}
	defer base.Close()
	if _, err := io.Copy(w, base); err != nil {
		return err
	}
	records := []cpio.Record{cpio.StaticFile("etc/hosts", hostsFile(), 0o644)}
	for _, file := range o.Files {
		record, closer, err := fileRecord(file)
		if err != nil {
			return err
		}
		defer closer.Close()
		records = append(records, record)
	}
	archive := cpio.Newc.Writer(w)
	if err := cpio.WriteRecordsAndDirs(archive, records); err != nil {
		return err
	}
	return cpio.WriteTrailer(archive)
}

func fileRecord(file File) (cpio.Record, io.Closer, error) {
	name := strings.TrimPrefix(filepath.Clean(file.To), "/")
	if file.Link != "" {
		return cpio.Symlink(name, file.Link), io.NopCloser(nil), nil
	}
	f, err := os.Open(file.From)
	if err != nil {
		return cpio.Record{}, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", file.From)
	}
	if err != nil {
		return cpio.Record{}, nil, errors.Join(err, f.Close())
	}
	return cpio.Record{
		ReaderAt: f,
		Info: cpio.Info{
			Name:     name,
			Mode:     syscall.S_IFREG | uint64(info.Mode().Perm()),
			FileSize: uint64(info.Size()),
			NLink:    1,
		},
	}, f, nil
}

// hostsFile names all hosts that there can be on a network.
func hostsFile() string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n")
	for n := 1; n <= MaxHosts; n++ {
		fmt.Fprintf(&b, "%s %s\n", Address(n).Addr(), HostName(n))
	}
	return b.String()
}
