package stream

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"sync"
)

// secured is a TLS connection for bulk data. TLS packs data into records of 16 KiB, and
// crypto/tls makes a system call for each; here the records of one Write go together, and
// Read takes as many as there are.
type secured struct {
	*tls.Conn
	records *records
	mu      sync.Mutex // of Write
}

// secure shakes hands over conn. half is tls.Client or tls.Server.
func secure(ctx context.Context, half func(net.Conn, *tls.Config) *tls.Conn, conn net.Conn, c *tls.Config) (net.Conn, error) {
	r := &records{Conn: conn, in: bufio.NewReaderSize(conn, recordsAhead)}
	s := &secured{Conn: half(r, c), records: r}
	if err := s.HandshakeContext(ctx); err != nil {
		return nil, explain(err)
	}
	return s, nil
}

// Write encrypts p and sends it before it returns.
func (s *secured) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records.hold(true)
	n, err := s.Conn.Write(p)
	if lost := s.records.hold(false); err == nil && lost != nil {
		return 0, lost
	}
	return n, err
}

// recordsAhead is how many bytes of records are gathered, in each direction.
const recordsAhead = 256 << 10

// records is what TLS records go over.
type records struct {
	net.Conn
	in *bufio.Reader

	mu   sync.Mutex
	held bool
	out  []byte
	// err is the first error, after which nothing may follow: a record is missing.
	err error
}

// Read reads what the peer has sent.
func (r *records) Read(p []byte) (int, error) { return r.in.Read(p) }

// Write sends p, or keeps it while records are held.
func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.out = append(r.out, p...)
	if !r.held || len(r.out) >= recordsAhead {
		r.flush()
	}
	if r.err != nil {
		return 0, r.err
	}
	return len(p), nil
}

// hold has records kept, or sent; it returns why sending failed.
func (r *records) hold(on bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = on
	if !on {
		r.flush()
	}
	return r.err
}

func (r *records) flush() {
	if r.err == nil && len(r.out) > 0 {
		_, r.err = r.Conn.Write(r.out)
	}
	r.out = r.out[:0]
}
