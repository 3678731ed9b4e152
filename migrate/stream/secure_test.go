package stream

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
)

// counted counts writes, and fails them when it is told to.
type counted struct {
	net.Conn
	mu     sync.Mutex
	writes int
	fail   error
}

func (c *counted) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes++
	if c.fail != nil {
		return 0, c.fail
	}
	return c.Conn.Write(p)
}

// TestSecured sends records in few writes, all of them before Write returns, and nothing
// more after one was lost.
func TestSecured(t *testing.T) {
	var raw *counted
	server, client := benchTLS(t)
	near, far := connect(t, 1,
		func(conn net.Conn) (net.Conn, error) {
			raw = &counted{Conn: conn}
			return secure(t.Context(), tls.Client, raw, client)
		},
		func(conn net.Conn) (net.Conn, error) { return secure(t.Context(), tls.Server, conn, server) },
	)
	defer near[0].Close()
	defer far[0].Close()
	const size = 1 << 20
	sent := bytes.Repeat([]byte("godwit!\n"), size/8)
	received := make(chan []byte, 1)
	go func() {
		got := make([]byte, size+1)
		_, err := io.ReadFull(far[0], got)
		if err != nil {
			t.Error(err)
		}
		received <- got
	}()
	raw.writes = 0
	if n, err := near[0].Write(sent); n != size || err != nil {
		t.Fatal(n, err)
	}
	if most := size/recordsAhead + 1; raw.writes > most {
		t.Errorf("%d writes, want at most %d", raw.writes, most)
	}
	if _, err := near[0].Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if got := <-received; !bytes.Equal(got, append(sent, 'x')) {
		t.Error("something else arrived")
	}
	lost := errors.New("lost")
	raw.fail = lost
	if _, err := near[0].Write([]byte("y")); !errors.Is(err, lost) {
		t.Error(err)
	}
	raw.fail = nil
	writes := raw.writes
	if _, err := near[0].Write([]byte("z")); !errors.Is(err, lost) || raw.writes != writes {
		t.Errorf("after a lost record: %v, %d writes", err, raw.writes-writes)
	}
}
