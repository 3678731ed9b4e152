package stream

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// destination accepts connections of one migration, as a router does, and sends what
// became of them.
type destination struct {
	addr     string
	acceptor *Acceptor
	results  chan accepted
}

type accepted struct {
	conn     net.Conn
	preamble Preamble
	err      error
}

func newDestination(t *testing.T, a *Acceptor) *destination {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	d := &destination{addr: listener.Addr().String(), acceptor: a, results: make(chan accepted, 16)}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			d.results <- d.accept(t.Context(), conn)
		}
	}()
	return d
}

func (d *destination) accept(ctx context.Context, conn net.Conn) accepted {
	p, err := ReadPreamble(conn, time.Now().Add(SetUpTime))
	if err != nil {
		conn.Close()
		return accepted{nil, p, err}
	}
	ready, err := d.acceptor.Accept(ctx, conn, p)
	return accepted{ready, p, err}
}

// TestSetUp makes all connections of a migration, and some more after a lost link.
func TestSetUp(t *testing.T) {
	server, client := benchTLS(t)
	client.ServerName = "" // is taken from the address
	for _, test := range []struct {
		name           string
		server, client *tls.Config
	}{{"plain", nil, nil}, {"TLS", server, client}} {
		t.Run(test.name, func(t *testing.T) {
			id := NewID()
			d := newDestination(t, &Acceptor{ID: id, TLS: test.server})
			dialer := &Dialer{Addr: d.addr, ID: id, TLS: test.client}
			dials := []func() (net.Conn, error){
				func() (net.Conn, error) { return dialer.Control(t.Context()) },
				func() (net.Conn, error) { return dialer.Data(t.Context(), Data, 0) },
				func() (net.Conn, error) { return dialer.Data(t.Context(), Data, 513) },
				func() (net.Conn, error) { return dialer.Data(t.Context(), Urgent, 0) },
				func() (net.Conn, error) { return dialer.Control(t.Context()) }, // again
			}
			secure := test.client != nil
			want := []Preamble{
				{id, Control, 0, secure, false}, {id, Data, 0, secure, true}, {id, Data, 513, secure, true},
				{id, Urgent, 0, secure, true}, {id, Control, 0, secure, true},
			}
			for i, dial := range dials {
				near, err := dial()
				if err != nil {
					t.Fatal(err)
				}
				far := <-d.results
				if far.err != nil || far.preamble != want[i] {
					t.Fatalf("%+v, %v, want %+v", far.preamble, far.err, want[i])
				}
				talk(t, near, far.conn)
				talk(t, far.conn, near)
				near.Close()
				far.conn.Close()
			}
			if dialer.Token != d.acceptor.Token() || dialer.Token == (Token{}) {
				t.Error("the ends have different tokens")
			}
			// After a start of both ends.
			d.acceptor = &Acceptor{ID: id, TLS: test.server}
			d.acceptor.SetToken(dialer.Token)
			if near, err := dialer.Control(t.Context()); err != nil {
				t.Error(err)
			} else {
				near.Close()
				(<-d.results).conn.Close()
			}
		})
	}
}

// talk sends a byte from one end to the other.
func talk(t *testing.T, from, to net.Conn) {
	t.Helper()
	if _, err := from.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := io.ReadFull(to, b[:]); err != nil || b[0] != 'x' {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	id := NewID()
	d := &destination{acceptor: &Acceptor{ID: id}, results: make(chan accepted, 1)}
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		d.results <- d.accept(t.Context(), conn)
	}()
	near, err := (&Dialer{Addr: "unix:" + path, ID: id}).Control(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far := <-d.results
	defer far.conn.Close()
	talk(t, near, far.conn)
}

// TestRefused tries what must not work. Both ends say why.
func TestRefused(t *testing.T) {
	id := NewID()
	good, other := newAuthority(t, "good"), newAuthority(t, "other")
	host := good.issue(t, nil)
	server := host.load(t, true)
	// What LoadTLS would not load is made by hand.
	withCert := func(f files, change func(*tls.Config)) *tls.Config {
		c := host.load(t, false)
		if f.cert != "" {
			pair, err := tls.LoadX509KeyPair(f.cert, f.key)
			if err != nil {
				t.Fatal(err)
			}
			c.Certificates = []tls.Certificate{pair}
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		if change != nil {
			change(c)
		}
		return c
	}
	asServer := func(f files) *tls.Config {
		c := withCert(f, nil)
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, c.RootCAs
		return c
	}
	expired := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	control := func(d *Dialer) (net.Conn, error) { return d.Control(t.Context()) }
	for _, test := range []struct {
		name           string
		server, client *tls.Config
		dial           func(*Dialer) (net.Conn, error)
		source, dest   string // what they say
	}{
		{"the source's authority is not known", server, withCert(other.issue(t, nil), nil), control,
			"the peer does not know the authority that signed our certificate", "not signed by an authority in --tls-ca"},
		{"the destination's authority is not known", asServer(other.issue(t, nil)), host.load(t, false), control,
			"not signed by an authority in --tls-ca", "the peer does not accept our certificate"},
		{"the source has no certificate", server, withCert(files{}, func(c *tls.Config) { c.Certificates, c.GetClientCertificate = nil, nil }), control,
			"wants a certificate: give --tls-cert", "the source shows no certificate: give it --tls-cert"},
		{"the source's certificate is expired", server, withCert(good.issue(t, expired), nil), control,
			"the peer finds our certificate expired", "certificate expired on"},
		{"the destination's certificate is expired", asServer(good.issue(t, expired)), host.load(t, false), control,
			"certificate expired on", "the peer does not accept our certificate"},
		{"the destination has another name", asServer(good.issue(t, func(c *x509.Certificate) {
			c.IPAddresses, c.DNSNames = nil, []string{"elsewhere"}
		})), host.load(t, false), control,
			"does not name 127.0.0.1", "the peer does not accept our certificate"},
		{"the source's certificate is for servers", server, withCert(good.issue(t, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}), nil), control,
			"the peer does not accept our certificate", "not for this use"},
		{"the source speaks TLS 1.2", server, withCert(files{}, func(c *tls.Config) {
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		}), control,
			"migration wants TLS 1.3", "speaks only TLS 1.2 or older"},
		{"the source is plain", server, nil, control,
			"the destination wants TLS and the source does not", "the destination wants TLS and the source does not"},
		{"the destination is plain", nil, withCert(files{}, nil), control,
			"the source uses TLS and the destination does not", "the source uses TLS and the destination does not"},
		{"another migration", nil, nil, func(d *Dialer) (net.Conn, error) {
			d.ID = NewID()
			return d.Control(t.Context())
		}, "is not known here", "is not known here"},
		{"data before control", nil, nil, func(d *Dialer) (net.Conn, error) { return d.Data(t.Context(), Data, 0) },
			"token is not that of this migration", "token is not that of this migration"},
		{"an index out of range", nil, nil, func(d *Dialer) (net.Conn, error) { return d.Data(t.Context(), Data, 1<<16) },
			"at most 65535", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := newDestination(t, &Acceptor{ID: id, TLS: test.server})
			conn, err := test.dial(&Dialer{Addr: d.addr, ID: id, TLS: test.client})
			if conn != nil {
				t.Fatal("the source is let in")
			}
			if err == nil || !strings.Contains(err.Error(), test.source) {
				t.Errorf("the source says %v, want %q", err, test.source)
			}
			if test.dest == "" {
				return
			}
			got := <-d.results
			if got.conn != nil || got.err == nil || !strings.Contains(got.err.Error(), test.dest) {
				t.Errorf("the destination says %v, want %q", got.err, test.dest)
			}
		})
	}
}

// TestIntruder has the ID of a migration but not its token.
func TestIntruder(t *testing.T) {
	id := NewID()
	d := newDestination(t, &Acceptor{ID: id})
	near, err := (&Dialer{Addr: d.addr, ID: id}).Control(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	defer (<-d.results).conn.Close()
	for _, test := range []struct {
		name string
		dial func() (net.Conn, error)
		want string
	}{
		{"second source", func() (net.Conn, error) { return (&Dialer{Addr: d.addr, ID: id}).Control(t.Context()) }, "has a control channel already"},
		{"no token", func() (net.Conn, error) { return (&Dialer{Addr: d.addr, ID: id}).Data(t.Context(), Data, 0) }, "it has another source"},
		{"wrong token", func() (net.Conn, error) {
			return (&Dialer{Addr: d.addr, ID: id, Token: Token{1}}).Control(t.Context())
		}, "it has another source"},
	} {
		conn, err := test.dial()
		var peer *PeerError
		if conn != nil || !errors.As(err, &peer) || !strings.Contains(peer.Text, test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
		if got := <-d.results; got.conn != nil || got.err == nil || !strings.Contains(got.err.Error(), test.want) {
			t.Errorf("%s: the destination says %v, want %q", test.name, got.err, test.want)
		}
	}
}

// TestStrangers are peers that are not godwit, and peers of another version.
func TestStrangers(t *testing.T) {
	newer := Preamble{ID: NewID(), Channel: Control}.append(nil)
	newer[6]++
	corrupt := Preamble{ID: NewID(), Channel: Control}.append(nil)
	corrupt[10] ^= 1
	for _, test := range []struct {
		name, sent, want, answer string
	}{
		{"HTTP", "G", "not godwit", ""}, // one byte is enough
		{"almost", "godwig", "not godwit", ""},
		{"TLS", "\x16\x03\x01\x02\x00\x01", "not godwit", ""},
		{"nothing", "", "EOF", ""},
		{"half", "godwit\x01\x00abc", "unexpected EOF", ""},
		{"newer", string(newer), "source speaks version 2 of the migration protocol", "use the same godwit on both"},
		{"corrupt", string(corrupt), "changed on the way", "changed on the way"},
		{"unknown channel", string(Preamble{Channel: 77}.append(nil)), "channel of kind 77", "channel of kind 77"},
	} {
		t.Run(test.name, func(t *testing.T) {
			near, far := tcpPairs(t, 1, false)
			defer far[0].Close()
			if _, err := io.WriteString(near[0], test.sent); err != nil {
				t.Fatal(err)
			}
			if test.want == "EOF" || test.name == "half" {
				near[0].(*net.TCPConn).CloseWrite()
			}
			_, err := ReadPreamble(far[0], time.Now().Add(SetUpTime))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			far[0].Close()
			answer, _ := io.ReadAll(near[0])
			if (test.answer == "") != (len(answer) == 0) {
				t.Fatalf("the peer gets %q", answer)
			}
			var peer *PeerError
			if test.answer != "" {
				if err := readAnswer(bytes.NewReader(answer)); !errors.As(err, &peer) || !strings.Contains(peer.Text, test.answer) {
					t.Errorf("the peer gets %v, want %q", err, test.answer)
				}
			}
			near[0].Close()
		})
	}
}

// TestSilence waits for peers that say nothing, no longer than told.
func TestSilence(t *testing.T) {
	near, far := tcpPairs(t, 2, false)
	for i := range near {
		defer near[i].Close()
		defer far[i].Close()
	}
	if _, err := ReadPreamble(far[0], time.Now().Add(20*time.Millisecond)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	a := &Acceptor{}
	if conn, err := a.Accept(ctx, far[1], Preamble{Channel: Control, Again: true}); conn != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, %v", conn, err)
	}
	// A listener that nobody accepts from.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialer := &Dialer{Addr: listener.Addr().String()}
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if conn, err := dialer.Control(ctx); conn != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, %v", conn, err)
	}
}

// TestNotReceive dials peers that are not godwit receive.
func TestNotReceive(t *testing.T) {
	long := []byte("godwit\x01\x00\x01\x00\xff\xff1234")
	corrupt := slices.Clone([]byte("godwit\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	for _, test := range []struct {
		name   string
		answer []byte
		want   string
	}{
		{"HTTP", []byte("HTTP/1.1 400 Bad Request\r\n\r\n"), "not godwit"},
		{"closed", nil, "closed the connection without an answer"},
		{"long", long, "want at most 512"},
		{"corrupt", corrupt, "changed on the way"},
	} {
		err := noAnswer(readAnswer(bytes.NewReader(test.answer)))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

func TestID(t *testing.T) {
	id := NewID()
	text, err := id.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	var back ID
	if err := back.UnmarshalText(text); err != nil || back != id || id == (ID{}) {
		t.Errorf("%v, %v, want %v", back, err, id)
	}
	for _, bad := range []string{"", "00", strings.Repeat("g", 32)} {
		if err := back.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is an ID", bad)
		}
	}
}

// TestLoadTLS loads files that cannot be used.
func TestLoadTLS(t *testing.T) {
	a := newAuthority(t, "a")
	good, other := a.issue(t, nil), a.issue(t, nil)
	expired := a.issue(t, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	})
	early := a.issue(t, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
	})
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name          string
		cert, key, ca string
		want          string
	}{
		{"no file", "/nowhere", good.key, good.ca, "--tls-cert: stat /nowhere"},
		{"a folder", t.TempDir(), good.key, good.ca, "want a PEM file"},
		{"not PEM", text, good.key, good.ca, "is not a PEM file"},
		{"key not PEM", good.cert, text, good.ca, "is not a PEM file"},
		{"another key", good.cert, other.key, good.ca, "do not belong together"},
		{"exchanged", good.key, good.cert, good.ca, "are no certificate and key"},
		{"expired", expired.cert, expired.key, good.ca, "expired on"},
		{"too early", early.cert, early.key, good.ca, "is valid only from"},
		{"authority is a key", good.cert, good.key, good.key, "no certificate that can be read"},
		{"authority not PEM", good.cert, good.key, text, "--tls-ca"},
		{"good", good.cert, good.key, good.ca, ""},
	} {
		_, err := LoadTLS(test.cert, test.key, test.ca, true)
		if test.want == "" && err == nil {
			continue
		}
		if err == nil || test.want == "" || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}
