package live

import (
	"context"
	"net"

	"github.com/godwit-vmm/godwit/migrate/stream"
)

// Accept accepts a connection for a receiver that has other processes Take it, or nil when
// ctx has ended. That the host is short of something for a while is no error.
func Accept(ctx context.Context, l net.Listener) (net.Conn, error) { return accept(ctx, l) }

// Take takes a connection that another process has accepted, and read the preamble of. It
// returns when the connection is not needed any more, and has closed it.
func (s *Server) Take(ctx context.Context, conn net.Conn, p stream.Preamble) {
	s.take(ctx, conn, p, func() {})
}
