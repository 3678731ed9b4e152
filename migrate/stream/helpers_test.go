package stream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/memory"
)

func newMemory(t testing.TB, size uint64) *memory.Guest {
	t.Helper()
	g, err := memory.New(memory.Options{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = a.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// sign makes a certificate, by the authority itself where it has none yet.
func (a *authority) sign(t testing.TB, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, parentKey := a.cert, a.key
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// files are those that LoadTLS takes.
type files struct{ cert, key, ca string }

// issue makes a certificate for 127.0.0.1, which change may change.
func (a *authority) issue(t testing.TB, change func(*x509.Certificate)) files {
	t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "host"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	cert, key := a.sign(t, template)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return files{
		cert: a.write(t, "CERTIFICATE", cert.Raw),
		key:  a.write(t, "PRIVATE KEY", der),
		ca:   a.write(t, "CERTIFICATE", a.cert.Raw),
	}
}

func (a *authority) write(t testing.TB, kind string, der []byte) string {
	t.Helper()
	f, err := os.CreateTemp(a.dir, "*.pem")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := pem.Encode(f, &pem.Block{Type: kind, Bytes: der}); err != nil {
		t.Fatal(err)
	}
	return filepath.Clean(f.Name())
}

// load is LoadTLS of files that have to be good.
func (f files) load(t testing.TB, server bool) *tls.Config {
	t.Helper()
	c, err := LoadTLS(f.cert, f.key, f.ca, server)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// benchTLS is a configuration for each end.
func benchTLS(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	f := newAuthority(t, "authority").issue(t, nil)
	server, client = f.load(t, true), f.load(t, false)
	client.ServerName = "127.0.0.1"
	return server, client
}

// tcpPairs makes connections over loopback, and returns both ends. Secure ones have TLS,
// as the set-up makes it.
func tcpPairs(t testing.TB, n int, secured bool) (here, there []net.Conn) {
	t.Helper()
	if !secured {
		return connect(t, n, nil, nil)
	}
	wrap := func(half func(net.Conn, *tls.Config) *tls.Conn, c *tls.Config) func(net.Conn) (net.Conn, error) {
		return func(conn net.Conn) (net.Conn, error) { return secure(t.Context(), half, conn, c) }
	}
	server, client := benchTLS(t)
	return connect(t, n, wrap(tls.Client, client), wrap(tls.Server, server))
}

// plainTLS are connections as crypto/tls makes them.
func plainTLS(t testing.TB, n int) (here, there []net.Conn) {
	t.Helper()
	wrap := func(half func(net.Conn, *tls.Config) *tls.Conn, c *tls.Config) func(net.Conn) (net.Conn, error) {
		return func(conn net.Conn) (net.Conn, error) {
			s := half(conn, c)
			return s, s.HandshakeContext(t.Context())
		}
	}
	server, client := benchTLS(t)
	return connect(t, n, wrap(tls.Client, client), wrap(tls.Server, server))
}

// connect makes connections, of which the ends are what near and far make of them.
func connect(t testing.TB, n int, near, far func(net.Conn) (net.Conn, error)) (here, there []net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for range n {
		a, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if near != nil {
			var work sync.WaitGroup
			var nearErr, farErr error
			work.Go(func() { b, farErr = far(b) })
			a, nearErr = near(a)
			work.Wait()
			if err := errors.Join(nearErr, farErr); err != nil {
				t.Fatal(err)
			}
		}
		here, there = append(here, a), append(there, b)
	}
	return here, there
}
