package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/godwit-vmm/godwit/internal/api"
	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/godwit-vmm/godwit/machine"
)

// apiServer answers on the guest's control socket.
type apiServer struct {
	served chan error

	mu sync.Mutex
	// listener is nil until the socket is there, server until somebody has
	// connected.
	listener net.Listener
	server   *api.Server
	closed   bool
}

// serveAPI answers on the guest's control socket until stop, which also says what
// went wrong. It returns at once: a start does not wait for the socket.
func (i *instance) serveAPI(current *atomic.Pointer[machine.Machine]) (stop func() error) {
	if i.dir == nil {
		return func() error { return nil }
	}
	s := &apiServer{served: make(chan error, 1)}
	go func() { s.served <- s.serve(i.dir.Path(rundir.APIFile), current) }()
	return s.close
}

// serve makes the server when somebody connects: a guest that nobody controls
// does not pay for it.
func (s *apiServer) serve(path string, current *atomic.Pointer[machine.Machine]) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if !s.set(func() { s.listener = l }) {
		return l.Close()
	}
	first, err := l.Accept()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	server := api.New(current.Load)
	if !s.set(func() { s.server = server }) {
		return first.Close()
	}
	return server.Serve(&acceptedListener{Listener: l, first: first})
}

// set changes the fields, unless the service has been closed.
func (s *apiServer) set(change func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		change()
	}
	return !s.closed
}

// close ends the service.
func (s *apiServer) close() error {
	s.mu.Lock()
	s.closed = true
	l, server := s.listener, s.server
	s.mu.Unlock()
	var err error
	switch {
	case server != nil:
		err = server.Close()
	case l != nil:
		err = l.Close()
	}
	return errors.Join(err, <-s.served)
}

// acceptedListener is a listener of which one connection was accepted already.
type acceptedListener struct {
	net.Listener
	first net.Conn
}

// Accept returns the first connection once, and then what comes. It is called by
// one goroutine.
func (l *acceptedListener) Accept() (net.Conn, error) {
	if c := l.first; c != nil {
		l.first = nil
		return c, nil
	}
	return l.Listener.Accept()
}

// control sends a request to the control socket of a guest that runs, and reads
// the answer into answer if that is not nil.
func control(ctx context.Context, name, method, path string, body, answer any) error {
	vm, err := rundir.Open(name)
	if err != nil {
		return err
	}
	defer vm.Close()
	c := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", vm.Path(rundir.APIFile))
		},
	}}
	if err := exchange(ctx, &c, method, path, body, answer); err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			err = rundir.ErrNotRunning
		}
		return fmt.Errorf("guest %s: %w", name, err)
	}
	return nil
}

// maxAnswer bounds an answer in bytes.
const maxAnswer = 1 << 20

func exchange(ctx context.Context, c *http.Client, method, path string, body, answer any) error {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://godwit"+path, content)
	if err != nil {
		return err
	}
	got, err := c.Do(r)
	if err != nil {
		return err
	}
	defer got.Body.Close()
	d := json.NewDecoder(io.LimitReader(got.Body, maxAnswer))
	if got.StatusCode >= http.StatusBadRequest {
		var f api.Fault
		if err := d.Decode(&f); err != nil {
			return fmt.Errorf("%s %s: %s", method, path, got.Status)
		}
		return errors.New(f.Message)
	}
	if answer == nil {
		return nil
	}
	return d.Decode(answer)
}
