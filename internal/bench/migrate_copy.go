package bench

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"time"

	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// CopyOptions are those of ReceiveCopy.
type CopyOptions struct {
	// Size is how much memory comes, in bytes: whole MiB.
	Size uint64
	// Connections is how many there are.
	Connections int
	// Fresh has memory come into guest memory that was never used, as that of a
	// guest does. Else each connection has a buffer that it uses again and again.
	Fresh bool
	// Cert, Key and CA are files in PEM format; empty for no TLS.
	Cert, Key, CA string
}

const (
	// copyPiece is how much is read and written at once, in bytes.
	copyPiece = 1 << 20
	// copyAddress is before the address in what ReceiveCopy announces.
	copyAddress = "copy at "
	// copyConnections bounds CopyOptions.Connections.
	copyConnections = 32
)

// ReceiveCopy is the other end of the floor of a migration: it takes memory over TCP and
// does nothing with it. It announces where it listens, on this host only, in a line.
func ReceiveCopy(ctx context.Context, o CopyOptions, announce io.Writer) error {
	if o.Connections < 1 || o.Connections > copyConnections || o.Size == 0 || o.Size%copyPiece != 0 {
		return fmt.Errorf("copy %d bytes over %d connections: want whole MiB, and 1 to %d connections", o.Size, o.Connections, copyConnections)
	}
	var mem []byte
	if o.Fresh {
		g, err := memory.New(memory.Options{Size: o.Size})
		if err != nil {
			return err
		}
		defer g.Close()
		mem = g.Regions()[0].Mem
		if uint64(len(mem)) != o.Size {
			return fmt.Errorf("copy %d bytes: this much memory has a hole; want less", o.Size)
		}
	}
	var config *tls.Config
	if o.Cert != "" {
		var err error
		if config, err = stream.LoadTLS(o.Cert, o.Key, o.CA, true); err != nil {
			return err
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	if _, err := fmt.Fprintf(announce, "%s%s\n", copyAddress, l.Addr()); err != nil {
		return err
	}
	results := make(chan error, o.Connections)
	for range o.Connections {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		defer conn.Close()
		if config != nil {
			conn = tls.Server(conn, config)
		}
		go func() { results <- takePart(conn, o.Size, mem) }()
	}
	return collect(results, o.Connections)
}

// takePart takes what comes over a connection, and confirms it. The part comes after its
// place and length.
func takePart(conn net.Conn, size uint64, mem []byte) error {
	var head [16]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return err
	}
	at, n := binary.LittleEndian.Uint64(head[:]), binary.LittleEndian.Uint64(head[8:])
	if at > size || n > size-at || n%copyPiece != 0 {
		return fmt.Errorf("a part of %d bytes at %#x of %d", n, at, size)
	}
	buf := make([]byte, copyPiece)
	for end := at + n; at < end; at += copyPiece {
		if mem != nil {
			buf = mem[at : at+copyPiece]
		}
		if _, err := io.ReadFull(conn, buf); err != nil {
			return err
		}
	}
	_, err := conn.Write([]byte{1})
	return err
}

// collect waits for n results and returns the first error.
func collect(results <-chan error, n int) (first error) {
	for range n {
		if err := <-results; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// plainCopy is the floor of a migration: memory that is written to as many connections,
// and read in another process.
type plainCopy struct {
	env         *Env
	mem         []byte
	connections int
}

func saidCopyAddress() *regexp.Regexp { return regexp.MustCompile(copyAddress + `(\S+)\n`) }

// run copies the memory once and returns the time from the first byte to the word that
// all has come.
func (p *plainCopy) run(ctx context.Context, fresh bool, c *certificate) (time.Duration, error) {
	argv := []string{p.env.Godwit, "bench", "receive-copy", "--size", strconv.Itoa(len(p.mem)), "--connections", strconv.Itoa(p.connections)}
	if fresh {
		argv = append(argv, "--fresh")
	}
	var config *tls.Config
	if c != nil {
		argv = append(argv, c.flags()...)
		var err error
		if config, err = stream.LoadTLS(c.cert, c.key, c.ca, false); err != nil {
			return 0, err
		}
		config.ServerName = "127.0.0.1"
	}
	to, match, err := startChild(ctx, saidCopyAddress(), argv...)
	if err != nil {
		return 0, err
	}
	defer to.kill()
	took, err := p.send(ctx, match[1], config)
	if err != nil {
		return 0, fmt.Errorf("plain copy: %w: %s", err, tail(to.said.String()))
	}
	return took, to.wait(ctx)
}

// send sends the memory to where ReceiveCopy listens.
func (p *plainCopy) send(ctx context.Context, addr string, config *tls.Config) (time.Duration, error) {
	var conns []net.Conn
	for range p.connections {
		conn, err := p.dial(ctx, addr, config)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	results := make(chan error, len(conns))
	began := time.Now()
	share := len(p.mem) / copyPiece / len(conns) * copyPiece
	for i, conn := range conns {
		first, end := i*share, (i+1)*share
		if i == len(conns)-1 {
			end = len(p.mem)
		}
		go func() { results <- sendPart(conn, uint64(first), p.mem[first:end]) }()
	}
	err := collect(results, len(conns))
	return time.Since(began), err
}

func (p *plainCopy) dial(ctx context.Context, addr string, config *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	if config == nil {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
	return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
}

// sendPart sends memory and waits for the word that it has come.
func sendPart(conn net.Conn, at uint64, part []byte) error {
	if err := conn.SetDeadline(time.Now().Add(processLimit)); err != nil {
		return err
	}
	head := binary.LittleEndian.AppendUint64(nil, at)
	if _, err := conn.Write(binary.LittleEndian.AppendUint64(head, uint64(len(part)))); err != nil {
		return err
	}
	for len(part) > 0 {
		n, err := conn.Write(part[:min(copyPiece, len(part))])
		if err != nil {
			return err
		}
		part = part[n:]
	}
	_, err := io.ReadFull(conn, head[:1])
	return err
}
