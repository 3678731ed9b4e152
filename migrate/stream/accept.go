package stream

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Acceptor takes the connections of one migration, for its destination. Any goroutine
// may use it.
type Acceptor struct {
	ID ID
	// TLS is nil for plain connections; else see LoadTLS.
	TLS *tls.Config

	mu    sync.Mutex
	token Token
}

// Token is that of the migration, zero before there is a control channel.
func (a *Acceptor) Token() Token {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.token
}

// SetToken has a destination that has been started again know its peer.
func (a *Acceptor) SetToken(t Token) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.token = t
}

// Accept goes on with a connection whose preamble was read, and returns what the
// migration goes over. It takes SetUpTime at most, and closes the connection when it
// fails; the dialer has been told why where that was possible.
func (a *Acceptor) Accept(ctx context.Context, conn net.Conn, p Preamble) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, SetUpTime, fmt.Errorf("the source did not go on within %v", SetUpTime))
	defer cancel()
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(keepAlive) // not vital
	}
	from := conn.RemoteAddr()
	ready, err := during(ctx, conn, func() (net.Conn, error) { return a.setUp(ctx, conn, p) })
	if err != nil {
		return nil, fmt.Errorf("%v of a migration from %v: %w", p.Channel, from, err)
	}
	return ready, nil
}

func (a *Acceptor) setUp(ctx context.Context, conn net.Conn, p Preamble) (net.Conn, error) {
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	if err := a.check(p); err != nil {
		Refuse(conn, err.Error())
		return nil, err
	}
	if err := writeAnswer(conn, ""); err != nil {
		return nil, err
	}
	if a.TLS != nil {
		server, err := secure(ctx, tls.Server, conn, a.TLS)
		if err != nil {
			return nil, err
		}
		conn = server
	}
	if p.Again {
		return conn, explain(a.checkToken(conn))
	}
	return conn, explain(a.giveToken(conn))
}

// check compares what the source wants with what there is.
func (a *Acceptor) check(p Preamble) error {
	switch {
	case p.ID != a.ID:
		return fmt.Errorf("migration %v is not known here: start it again from the source", p.ID)
	case p.TLS && a.TLS == nil:
		return errors.New("the source uses TLS and the destination does not: give both --tls-cert, --tls-key and --tls-ca, or neither")
	case !p.TLS && a.TLS != nil:
		return errors.New("the destination wants TLS and the source does not use it: give both --tls-cert, --tls-key and --tls-ca, or neither")
	case p.Channel != Control && !p.Again:
		return fmt.Errorf("a %v without a token: the control channel comes first", p.Channel)
	}
	return nil
}

// giveToken makes the token up, once, and sends it.
func (a *Acceptor) giveToken(conn net.Conn) error {
	a.mu.Lock()
	first := a.token == Token{}
	if first {
		rand.Read(a.token[:])
	}
	token := a.token
	a.mu.Unlock()
	if !first {
		return refused(conn, errors.New("this migration has a control channel already"))
	}
	if err := writeAnswer(conn, ""); err != nil {
		return err
	}
	_, err := conn.Write(token[:])
	return err
}

// checkToken lets in only whom the token was given to.
func (a *Acceptor) checkToken(conn net.Conn) error {
	var got Token
	if _, err := io.ReadFull(conn, got[:]); err != nil {
		return err
	}
	want := a.Token()
	if want == (Token{}) || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		return refused(conn, errors.New("the connection's token is not that of this migration: it has another source"))
	}
	return writeAnswer(conn, "")
}

func refused(conn net.Conn, err error) error {
	Refuse(conn, err.Error())
	return err
}
