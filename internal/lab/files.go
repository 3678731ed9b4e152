package lab

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/godwit-vmm/godwit/guest/agent"
)

// PutFile copies a file of this machine to a path in a host.
func PutFile(ctx context.Context, c *agent.Client, from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return c.Put(ctx, to, info.Mode(), f)
}

// GetFile copies a file of a host to a path of this machine, as a whole or not
// at all.
func GetFile(ctx context.Context, c *agent.Client, from, to string) error {
	f, err := os.CreateTemp(filepath.Dir(to), ".get-*")
	if err != nil {
		return err
	}
	mode, err := c.Get(ctx, from, f)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), to)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// tailBytes is how much of a log an error shows.
const tailBytes = 4 << 10

// tail is the end of a log file, empty if it cannot be read: it is only shown
// beside another error.
func tail(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	start := max(0, size-tailBytes)
	text, err := io.ReadAll(io.NewSectionReader(f, start, size-start))
	if err != nil {
		return ""
	}
	if start > 0 {
		_, text, _ = bytes.Cut(text, []byte("\n"))
	}
	return strings.ToValidUTF8(strings.TrimRight(string(text), "\r\n"), "?")
}
