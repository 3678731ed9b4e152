// Package client speaks the control API of a running guest: HTTP over its unix
// socket (see package api for the resources).
package client

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
	"syscall"
)

// ErrNobody says that nobody serves the socket: the guest is gone, or only just
// starting.
var ErrNobody = errors.New("nobody answers on the control socket")

// Fault is what the server says of a request that it refuses.
type Fault struct {
	// Status is HTTP's.
	Status int
	// Message is the server's fault_message.
	Message string
}

// Error is the server's message.
func (f *Fault) Error() string { return f.Message }

// Limits on what a server sends: it runs a guest, which may have got hold of it.
const (
	// maxAnswer bounds an answer in bytes.
	maxAnswer = 1 << 20
	// maxHeader bounds the header of an answer in bytes.
	maxHeader = 16 << 10
)

// Client sends requests to a control socket, each on a connection of its own. It
// may be used by several goroutines, and holds nothing that is to be closed.
type Client struct {
	path string
	http http.Client
}

// New makes a client for the socket at path.
func New(path string) *Client {
	c := &Client{path: path}
	c.http.Transport = &http.Transport{
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: maxHeader,
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
	}
	return c
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		// Not what the socket's path is: it may be one of this process only.
		return nil, ErrNobody
	}
	return conn, err
}

// Do sends a request and reads the answer. The body is sent as JSON unless it is
// nil, and the answer is decoded into answer unless that is nil. The error is a
// *Fault if the server refuses, and wraps ErrNobody if there is none.
func (c *Client) Do(ctx context.Context, method, path string, body, answer any) error {
	got, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer got.Body.Close()
	if answer == nil {
		return nil
	}
	text, err := read(got.Body)
	if err == nil {
		err = json.Unmarshal(text, answer)
	}
	if err != nil {
		return fmt.Errorf("%s %s: answer: %w", method, path, err)
	}
	return nil
}

// send sends a request, whose answer's body the caller closes.
func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
		content = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://godwit"+path, content)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	got, err := c.http.Do(r)
	if err != nil {
		return nil, plain(ctx, method, path, err)
	}
	if got.StatusCode >= http.StatusBadRequest {
		defer got.Body.Close()
		return nil, fault(method, path, got)
	}
	return got, nil
}

// plain takes the words of net/http about an error away, which name an address
// that is none.
func plain(ctx context.Context, method, path string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	for u := errors.Unwrap(err); u != nil; u = errors.Unwrap(err) {
		err = u
	}
	switch {
	case errors.Is(err, ErrNobody):
		return err
	case errors.Is(err, io.EOF), gone(err):
		err = errors.New("the server ended before it had answered")
	}
	return fmt.Errorf("%s %s: %w", method, path, err)
}

// fault is what the server says is wrong.
func fault(method, path string, got *http.Response) error {
	var f struct {
		Message string `json:"fault_message"`
	}
	text, err := read(got.Body)
	if err != nil || json.Unmarshal(text, &f) != nil || f.Message == "" {
		f.Message = fmt.Sprintf("%s %s: %s", method, path, got.Status)
	}
	return &Fault{got.StatusCode, f.Message}
}

// read reads an answer to its end, if that is not too far.
func read(r io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxAnswer+1))
	if err == nil && len(text) > maxAnswer {
		return nil, fmt.Errorf("it is longer than %d bytes", maxAnswer)
	}
	return text, err
}
