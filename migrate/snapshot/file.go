package snapshot

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// punchHole frees the blocks of n bytes at offset, which then read as zeros. File
// systems that have no holes get zeros.
func punchHole(f *os.File, offset, n int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, n)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS):
			return writeZeros(f, offset, n)
		case !errors.Is(err, unix.EINTR):
			return &os.PathError{Op: "punch a hole into", Path: f.Name(), Err: err}
		}
	}
}

func writeZeros(f *os.File, offset, n int64) error {
	for end := offset + n; offset < end; offset += PageSize {
		if _, err := f.WriteAt(zeroPage[:], offset); err != nil {
			return err
		}
	}
	return nil
}

// openRegular opens a file of a snapshot for reading. It must be a regular file
// of the wanted size, or of at most limit bytes if that is negative. Nothing in a
// directory that somebody else made can make it wait.
func openRegular(dir *os.File, name string, want, limit int64) (f *os.File, size int64, err error) {
	f, err = openAt(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, 0, fmt.Errorf("%s: it is a symbolic link, want a regular file", name)
	}
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			f = nil
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return f, 0, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return f, 0, fmt.Errorf("%s: it has file type %#o, want a regular file", name, st.Mode&unix.S_IFMT)
	case want >= 0 && st.Size != want:
		return f, 0, fmt.Errorf("%s: %w: %d bytes, want %d", name, ErrDamaged, st.Size, want)
	case want < 0 && st.Size > limit:
		return f, 0, fmt.Errorf("%s: %w: %d bytes, want at most %d", name, ErrDamaged, st.Size, limit)
	}
	return f, st.Size, nil
}

// readSmall reads all of a file of at most limit bytes.
func readSmall(dir *os.File, name string, limit int64) ([]byte, error) {
	f, size, err := openRegular(dir, name, -1, limit)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := make([]byte, size)
	if _, err := io.ReadFull(f, p); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p, nil
}
