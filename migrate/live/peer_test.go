package live

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// issuer makes certificates for 127.0.0.1 that one authority has signed.
func issuer(t *testing.T) (issue func() tls.Certificate, ca *x509.CertPool) {
	t.Helper()
	template := func(serial int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IsCA: serial == 1, BasicConstraintsValid: true,
			KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
	}
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	root := newKey()
	serial := int64(1)
	sign := func(key *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template(serial), template(1), &key.PublicKey, root)
		if err != nil {
			t.Fatal(err)
		}
		serial++
		return der
	}
	authority, err := x509.ParseCertificate(sign(root))
	if err != nil {
		t.Fatal(err)
	}
	ca = x509.NewCertPool()
	ca.AddCert(authority)
	return func() tls.Certificate {
		key := newKey()
		return tls.Certificate{Certificate: [][]byte{sign(key)}, PrivateKey: key}
	}, ca
}

// TestAnotherSource: while a migration is under way only its source is heard, not another
// host that the authority knows, too, and that has seen the migration's ID on the wire.
func TestAnotherSource(t *testing.T) {
	issue, ca := issuer(t)
	as := func(own tls.Certificate) *tls.Config {
		return &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own},
			RootCAs: ca, ClientCAs: ca, ClientAuth: tls.RequireAndVerifyClientCert,
		}
	}
	source, other := issue(), issue()
	d := newThere(t)
	d.TLS = as(issue())
	d.Waits = DefaultWaits
	id := handover.NewID()
	says := func(own tls.Certificate, v handover.Verb) *control {
		t.Helper()
		dialer := &stream.Dialer{Addr: d.addr, ID: stream.ID(id), TLS: as(own)}
		conn, err := dialer.Control(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		c := newControl(conn, nil)
		if v != 0 {
			err = c.send(frameHandover, handover.Message{Verb: v, ID: id, Epoch: 1}.Encode())
		} else if err = c.sendJSON(frameOffer, Offer{Version: Version, ID: id, Epoch: 1, Name: "traveller", Connections: 1, Guest: []byte("{}")}); err == nil {
			_, err = c.expect(frameAnswer, time.Minute)
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	says(source, 0)
	if _, _, err := says(other, handover.Abort).receive(frameHandover); err == nil {
		t.Error("another host is answered")
	}
	select {
	case s := <-d.ended:
		t.Fatalf("another host has ended the migration: the destination is %v", s)
	default:
	}
	says(source, handover.Abort)
	if s := <-d.ended; s != handover.DestinationAborted {
		t.Errorf("the source has called it off, and the destination is %v", s)
	}
}
