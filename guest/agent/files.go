package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// put writes what the client sends to a file, under a temporary name until it
// is complete.
func (s *serverSession) put(req request) error {
	if info, err := os.Stat(req.Path); err == nil && info.IsDir() {
		return fmt.Errorf("%s is a directory", req.Path)
	}
	if err := os.MkdirAll(filepath.Dir(req.Path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(req.Path), ".put-*")
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(onlyWriter{f}, onlyReader{s.in[stdin]}, make([]byte, maxData))
	err = errors.Join(err, f.Chmod(req.Mode.Perm()), f.Close())
	if err == nil && s.isAbandoned() {
		err = errors.New("broken off")
	}
	if err == nil {
		err = os.Rename(f.Name(), req.Path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// get sends a file to the client.
func (s *serverSession) get(req request) (fs.FileMode, error) {
	f, err := os.Open(req.Path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if err := copyToStream(s.channel, stdout, f); err != nil {
		return 0, err
	}
	return info.Mode().Perm(), s.finish(stdout)
}

func (s *serverSession) isAbandoned() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.abandoned
}
