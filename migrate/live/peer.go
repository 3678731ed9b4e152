package live

import (
	"crypto/tls"
	"net"
)

// shown is the certificate that the peer has shown on a connection, "" without TLS. In a
// migration it stays the same: another host that the same authority knows could say COMMIT
// while the guest runs at its source.
func shown(conn net.Conn) string {
	secure, ok := conn.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return ""
	}
	certificates := secure.ConnectionState().PeerCertificates
	if len(certificates) == 0 {
		return ""
	}
	return string(certificates[0].Raw)
}
