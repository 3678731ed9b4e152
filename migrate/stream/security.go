package stream

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// maxPEM bounds the files of certificates and keys, in bytes.
const maxPEM = 1 << 20

// LoadTLS reads the certificate that this end shows, its key, and the certificates of
// the authorities that the peer's has to be signed by: PEM files. Only TLS 1.3 is spoken,
// and both ends show a certificate. server is for the destination.
func LoadTLS(cert, key, ca string, server bool) (*tls.Config, error) {
	own, err := loadPair(cert, key)
	if err != nil {
		return nil, err
	}
	roots, err := loadCA(ca)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
	if server {
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, roots
	} else {
		c.RootCAs = roots
		// Also where the destination's authorities did not sign it: that it shows none
		// would be the wrong complaint.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
	}
	return c, nil
}

// loadPair reads a certificate that is valid now, and its key.
func loadPair(cert, key string) (tls.Certificate, error) {
	none := tls.Certificate{}
	certPEM, err := readPEM("--tls-cert", cert)
	if err != nil {
		return none, err
	}
	keyPEM, err := readPEM("--tls-key", key)
	if err != nil {
		return none, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return none, fmt.Errorf("--tls-cert %s and --tls-key %s do not belong together, or are no certificate and key: %w", cert, key, err)
	}
	if err := inTime(pair.Leaf, time.Now()); err != nil {
		return none, fmt.Errorf("--tls-cert %s %w", cert, err)
	}
	return pair, nil
}

func loadCA(path string) (*x509.CertPool, error) {
	text, err := readPEM("--tls-ca", path)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("--tls-ca %s has no certificate that can be read: want the PEM certificate of the authority that signed the peer's", path)
	}
	return roots, nil
}

// readPEM reads a file that has at least one PEM block.
func readPEM(flag, path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxPEM {
		return nil, fmt.Errorf("%s %s: want a PEM file of at most %d bytes", flag, path, maxPEM)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if block, _ := pem.Decode(text); block == nil {
		return nil, fmt.Errorf("%s %s is not a PEM file (it has no -----BEGIN line): convert it with openssl x509 or openssl pkey", flag, path)
	}
	return text, nil
}

// inTime says when the certificate is valid, if not now.
func inTime(c *x509.Certificate, now time.Time) error {
	switch {
	case now.After(c.NotAfter):
		return fmt.Errorf("expired on %v: renew it, or set this machine's clock", c.NotAfter.UTC().Format(time.DateTime))
	case now.Before(c.NotBefore):
		return fmt.Errorf("is valid only from %v on: set this machine's clock, or wait", c.NotBefore.UTC().Format(time.DateTime))
	}
	return nil
}

// explain says in a sentence what an error of TLS means, and what to do.
func explain(err error) error {
	if err == nil {
		return nil
	}
	if advice := advise(err); advice != "" {
		return fmt.Errorf("TLS: %s (%w)", advice, err)
	}
	return err
}

func advise(err error) string {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	switch {
	case errors.As(err, &unknown):
		return "the peer's certificate is not signed by an authority in --tls-ca: give the authority that signed it"
	case errors.As(err, &name):
		return fmt.Sprintf("the peer's certificate does not name %s: use an address that it names, or make one that names this", name.Host)
	case errors.As(err, &invalid):
		return adviseInvalid(invalid)
	}
	return adviseText(err.Error())
}

func adviseInvalid(invalid x509.CertificateInvalidError) string {
	switch invalid.Reason {
	case x509.Expired:
		if err := inTime(invalid.Cert, time.Now()); err != nil {
			return "the peer's certificate " + err.Error()
		}
		return "the peer's certificate is not valid now: renew it, or set this machine's clock"
	case x509.IncompatibleUsage:
		return "the peer's certificate is not for this use: the destination's needs extended key usage serverAuth, the source's clientAuth"
	}
	return "the peer's certificate is not valid: make a new one"
}

// adviseText knows the errors that crypto/tls has no types for: alerts of the peer, and
// what its handshake lacks.
func adviseText(text string) string {
	for _, known := range []struct{ part, advice string }{
		{"client didn't provide a certificate", "the source shows no certificate: give it --tls-cert and --tls-key"},
		{"certificate required", "the destination wants a certificate: give --tls-cert and --tls-key"},
		{"unsupported versions", "the peer speaks only TLS 1.2 or older: migration wants TLS 1.3"},
		{"unsupported protocol version", "the peer speaks only TLS 1.2 or older: migration wants TLS 1.3"},
		{"protocol version not supported", "the peer does not speak the same version of TLS: migration wants TLS 1.3"},
		{"first record does not look like a TLS handshake", "the peer does not speak TLS: give both ends --tls-cert, --tls-key and --tls-ca, or neither"},
		{"unknown certificate authority", "the peer does not know the authority that signed our certificate: its --tls-ca has to have it"},
		{"expired certificate", "the peer finds our certificate expired: renew it, or set the peer's clock"},
		{"bad certificate", "the peer does not accept our certificate: see its message; does our certificate name the address that is dialled, and does its --tls-ca fit?"},
		{"unsupported certificate", "the peer does not accept our certificate: the destination's needs extended key usage serverAuth, the source's clientAuth"},
	} {
		if strings.Contains(text, known.part) {
			return known.advice
		}
	}
	return ""
}
