package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/godwit-vmm/godwit/internal/events"
	"github.com/godwit-vmm/godwit/internal/ring"
)

// maxEvent bounds the line of an event in bytes.
const maxEvent = 64 << 10

// Events calls each for all events of the guest, until the guest ends, which is no
// error, or ctx does, or each returns an error, which Events returns. since asks
// for events of before, as the API has it: a number, a time, or "" for none.
func (c *Client) Events(ctx context.Context, since string, each func(events.Event) error) error {
	path := "/events"
	if since != "" {
		path += "?since=" + url.QueryEscape(since)
	}
	got, err := c.send(ctx, "GET", path, nil)
	if err != nil {
		return err
	}
	defer got.Body.Close()
	in := bufio.NewReaderSize(got.Body, maxEvent)
	for {
		// What has no end of line is of a server that was killed.
		line, err := in.ReadSlice('\n')
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("GET %s: an event is longer than %d bytes", path, maxEvent)
		case errors.Is(err, io.EOF), gone(err):
			return nil
		case err != nil:
			return plain(ctx, "GET", path, err)
		}
		var e events.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("GET %s: %.100q is no event: %w", path, line, err)
		}
		if err := each(e); err != nil {
			return err
		}
	}
}

// gone tells whether a connection's error is that the server has ended.
func gone(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)
}

// Console is a connection to a guest's console.
type Console struct {
	conn net.Conn
	in   *bufio.Reader
}

// Console connects to the guest's console. ctx bounds the connecting only.
func (c *Client) Console(ctx context.Context) (*Console, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, plain(ctx, "GET", "/console", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	console, err := upgrade(conn)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		var f *Fault
		if errors.As(err, &f) {
			return nil, err
		}
		return nil, plain(ctx, "GET", "/console", err)
	}
	return console, nil
}

// upgrade makes an HTTP connection a stream of bytes (RFC 9110 §7.8).
func upgrade(conn net.Conn) (*Console, error) {
	r, err := http.NewRequest(http.MethodGet, "http://godwit/console", nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", ring.Protocol)
	if err := r.Write(conn); err != nil {
		return nil, err
	}
	// The header must not grow without bound; what follows it may.
	limited := &io.LimitedReader{R: conn, N: maxHeader + maxAnswer}
	in := bufio.NewReader(limited)
	got, err := http.ReadResponse(in, r)
	if err != nil {
		return nil, err
	}
	if got.StatusCode != http.StatusSwitchingProtocols {
		defer got.Body.Close()
		if got.StatusCode >= http.StatusBadRequest {
			return nil, fault(r.Method, r.URL.Path, got)
		}
		return nil, &Fault{got.StatusCode, "the console does not take connections: " + got.Status}
	}
	early, err := in.Peek(in.Buffered())
	if err != nil {
		return nil, err
	}
	return &Console{conn, bufio.NewReader(io.MultiReader(bytes.NewReader(bytes.Clone(early)), conn))}, nil
}

// Read reads what the guest wrote, at first what the console keeps of before. It
// returns io.EOF when the guest has ended.
func (c *Console) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	if err != nil && gone(err) {
		err = io.EOF
	}
	return n, err
}

// Write types. It may be called while Read waits.
func (c *Console) Write(p []byte) (int, error) { return c.conn.Write(p) }

// Close detaches from the console, and ends a Read that waits. The guest goes on.
func (c *Console) Close() error { return c.conn.Close() }

// maxLine bounds a line of an answer in bytes.
const maxLine = 64 << 10

// Lines sends a request whose answer has a JSON object a line, for as long as what was
// asked for takes, and calls each for all of them. It ends when the answer does.
func (c *Client) Lines(ctx context.Context, method, path string, body any, each func([]byte) error) error {
	got, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer got.Body.Close()
	in := bufio.NewReaderSize(got.Body, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("%s %s: a line is longer than %d bytes", method, path, maxLine)
		case errors.Is(err, io.EOF), gone(err):
			return nil
		case err != nil:
			return plain(ctx, method, path, err)
		}
		if err := each(bytes.TrimSuffix(line, []byte("\n"))); err != nil {
			return err
		}
	}
}
