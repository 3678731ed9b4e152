package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Token is what binds the connections of a migration together.
type Token [32]byte

// Dialer makes the connections of a migration, for its source. It is used by one
// goroutine at a time.
type Dialer struct {
	// Addr is HOST:PORT, or unix:PATH.
	Addr string
	ID   ID
	// TLS is nil for a plain connection; else see LoadTLS. The host of Addr is what the
	// destination's certificate has to name, unless ServerName is set.
	TLS *tls.Config
	// Token is the migration's. Zero, it is set by Control; a source that has been started
	// again sets it to what it was.
	Token Token
}

// Control makes the control channel. After a lost link it may be called again.
func (d *Dialer) Control(ctx context.Context) (net.Conn, error) {
	return d.dial(ctx, Preamble{ID: d.ID, Channel: Control, TLS: d.TLS != nil, Again: d.Token != Token{}})
}

// Data makes a channel for pages, Data or Urgent, after Control.
func (d *Dialer) Data(ctx context.Context, channel Channel, index int) (net.Conn, error) {
	if index < 0 || index > 0xffff {
		return nil, fmt.Errorf("%v %d: want an index of at most 65535", channel, index)
	}
	return d.dial(ctx, Preamble{ID: d.ID, Channel: channel, Index: uint16(index), TLS: d.TLS != nil, Again: true})
}

func (d *Dialer) dial(ctx context.Context, p Preamble) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, SetUpTime, fmt.Errorf("no answer within %v: is it godwit receive that listens there?", SetUpTime))
	defer cancel()
	conn, err := dialAddr(ctx, d.Addr)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
		err = fmt.Errorf("%w: does godwit receive listen there?", err)
	}
	if err != nil {
		return nil, fmt.Errorf("migrate to %s: %w", d.Addr, causeOf(ctx, err))
	}
	ready, err := during(ctx, conn, func() (net.Conn, error) { return d.setUp(ctx, conn, p) })
	if err != nil {
		return nil, fmt.Errorf("migrate to %s: %v: %w", d.Addr, p.Channel, err)
	}
	return ready, nil
}

// dialAddr connects to HOST:PORT or unix:PATH.
func dialAddr(ctx context.Context, addr string) (net.Conn, error) {
	dialer := net.Dialer{KeepAliveConfig: keepAlive}
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return dialer.DialContext(ctx, "unix", path)
	}
	return dialer.DialContext(ctx, "tcp", addr)
}

// keepAlive finds out within half a minute that the peer's machine is gone.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}

func (d *Dialer) setUp(ctx context.Context, conn net.Conn, p Preamble) (net.Conn, error) {
	if _, err := conn.Write(p.append(nil)); err != nil {
		return nil, err
	}
	if err := readAnswer(conn); err != nil {
		return nil, noAnswer(err)
	}
	if d.TLS != nil {
		client, err := secure(ctx, tls.Client, conn, d.config())
		if err != nil {
			return nil, err
		}
		conn = client
	}
	// With TLS 1.3 the destination judges our certificate after the handshake is over
	// for us: the answer says how that went.
	if p.Again {
		_, lost := conn.Write(d.Token[:])
		if err := readAnswer(conn); err != nil {
			return nil, explain(noAnswer(err)) // says more than the error of the write
		}
		return conn, lost
	}
	if err := readAnswer(conn); err != nil {
		return nil, explain(noAnswer(err))
	}
	_, err := io.ReadFull(conn, d.Token[:])
	return conn, explain(err)
}

// config is the configuration for this address.
func (d *Dialer) config() *tls.Config {
	host, _, err := net.SplitHostPort(d.Addr)
	if d.TLS.ServerName != "" || err != nil {
		return d.TLS
	}
	c := d.TLS.Clone()
	c.ServerName = host
	return c
}

// noAnswer says what it may mean that the connection ended before an answer.
func noAnswer(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the peer closed the connection without an answer: is it godwit receive, and not ending? (%w)", err)
	}
	return err
}

// during calls f while the context's end breaks the connection, and closes it if f fails.
// The connection that f returns has no deadline.
func during(ctx context.Context, conn net.Conn, f func() (net.Conn, error)) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	ready, err := f()
	if !stop() {
		return nil, causeOf(ctx, err)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return ready, nil
}

// causeOf is why the context ended, if it did, and err if not.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
