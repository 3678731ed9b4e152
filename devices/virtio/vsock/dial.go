package vsock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
)

// ErrRefused is wrapped by Dial's error when nobody in the guest listens at the
// port.
var ErrRefused = errors.New("connection refused by the guest")

// Dial connects to a port of the guest whose device has the socket at path. It
// waits until the guest has a driver for the device, or the context ends.
func Dial(ctx context.Context, path string, port uint32) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to port %d of the guest: %w", port, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	err = sayConnect(c, port)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, errors.Join(fmt.Errorf("connect to port %d of the guest: %w", port, err), ignoreClosed(c.Close()))
	}
	return c, nil
}

// Listen listens at a port of the host for connections of the guest whose device
// has its socket at path, or will have it. Only the owner of the process may
// connect beside the guest. A socket that nobody listens at any more is replaced.
func Listen(path string, port uint32) (*net.UnixListener, error) {
	l, err := listen(portPath(path, port))
	if err != nil {
		return nil, fmt.Errorf("listen at port %d for the guest: %w", port, err)
	}
	f := os.NewFile(uintptr(l.fd), l.path)
	defer f.Close() // net takes a duplicate
	n, err := net.FileListener(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen at port %d for the guest: %w", port, err), os.Remove(l.path))
	}
	u := n.(*net.UnixListener)
	u.SetUnlinkOnClose(true)
	return u, nil
}

// portPath is where programs of the host listen at a port for the guest.
func portPath(path string, port uint32) string {
	return path + "_" + strconv.FormatUint(uint64(port), 10)
}

func sayConnect(c net.Conn, port uint32) error {
	if _, err := fmt.Fprintf(c, "CONNECT %d\n", port); err != nil {
		return err
	}
	// Byte by byte, for what comes behind the line is the connection's.
	var line []byte
	var b [1]byte
	for len(line) < maxGreetingLine {
		if _, err := io.ReadFull(c, b[:]); errors.Is(err, io.EOF) {
			return ErrRefused
		} else if err != nil {
			return err
		}
		if b[0] == '\n' {
			break
		}
		line = append(line, b[0])
	}
	if !strings.HasPrefix(string(line), "OK ") {
		return fmt.Errorf("the answer is %q, want \"OK PORT\": is this the socket of a vsock device?", line)
	}
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
