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

// putTree puts a tree that the client sends. The client is trusted, as it can run
// any command.
func (s *serverSession) putTree(req request) (Copied, error) {
	copied, err := receiveTree(s.in[stdin], req.Path, receiveOptions{trusted: true, owners: req.Owners})
	if err == nil && s.isAbandoned() {
		err = errors.New("broken off")
	}
	return copied, err
}

// getTree sends a tree to the client.
func (s *serverSession) getTree(req request) (Copied, error) {
	copied, err := sendTree(streamWriter{s.channel, stdout}, req.Path, req.Follow, nil)
	if err != nil {
		return copied, err
	}
	return copied, s.finish(stdout)
}

// streamWriter writes to a stream of a session.
type streamWriter struct {
	channel *channel
	stream  stream
}

// Write returns when all of p is on its way.
func (w streamWriter) Write(p []byte) (int, error) {
	if err := w.channel.write(w.stream, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *serverSession) isAbandoned() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.abandoned
}
