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
	"sync/atomic"
	"syscall"

	"github.com/godwit-vmm/godwit/internal/api"
	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/godwit-vmm/godwit/machine"
)

// serveAPI answers on the guest's control socket until stop.
func (i *instance) serveAPI(current *atomic.Pointer[machine.Machine]) (stop func() error, _ error) {
	if i.dir == nil {
		return func() error { return nil }, nil
	}
	l, err := net.Listen("unix", i.dir.Path(rundir.APIFile))
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	s := api.New(current.Load)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	return func() error { return errors.Join(s.Close(), <-served) }, nil
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
