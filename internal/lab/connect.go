package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/guest/agent"
)

// portTimeout is how long a port of a host that is up may take to answer. One
// whose last user was killed in the middle of a message may not.
const portTimeout = 20 * time.Second

// Connect connects to a host of a group. Each connection takes one of the
// host's ports until it is closed.
func Connect(ctx context.Context, h HostInfo) (*agent.Client, error) {
	var last error
	for i := range agentPorts - 1 {
		// Not always from the first one: a port rests a while before it
		// is used again, and what its last user left is gone by then.
		number := 1 + (os.Getpid()+i)%(agentPorts-1)
		line, err := openPort(h, number)
		if err != nil {
			last = err
			continue
		}
		limited, cancel := context.WithTimeout(ctx, portTimeout)
		client, err := agent.Dial(limited, line)
		cancel()
		if err == nil || ctx.Err() != nil {
			return client, err
		}
		last = err
	}
	return nil, fmt.Errorf("lab host %s: none of its %d ports is free: %w", h.Name, agentPorts-1, last)
}

// portLine is a connection to a port, which is locked for as long as it lasts.
type portLine struct {
	net.Conn
	lock *os.File
}

// Close gives the port free for the next.
func (l *portLine) Close() error { return errors.Join(l.Conn.Close(), l.lock.Close()) }

func openPort(h HostInfo, number int) (*portLine, error) {
	socket := filepath.Join(h.Dir, portName(number))
	lock, err := os.OpenFile(socket+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("port %d: %w", number, err), lock.Close())
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &portLine{conn, lock}, nil
}
