package agent

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

func TestAwaitHello(t *testing.T) {
	for _, test := range []struct {
		name  string
		guest func(net.Conn)
		ok    bool
		is    error
	}{
		{"says so", func(c net.Conn) { _, _ = c.Write([]byte{Hello}) }, true, nil},
		{"says something else", func(c net.Conn) { _, _ = c.Write([]byte("x")) }, false, nil},
		{"gave the connection up", func(c net.Conn) { c.Close() }, false, io.EOF},
		{"says nothing", func(net.Conn) {}, false, os.ErrDeadlineExceeded},
	} {
		t.Run(test.name, func(t *testing.T) {
			guest, host := net.Pipe()
			defer guest.Close()
			defer host.Close()
			limit := time.Minute
			if test.is == os.ErrDeadlineExceeded {
				limit = time.Millisecond
			}
			go test.guest(guest)
			err := AwaitHello(host, limit)
			if (err == nil) != test.ok || test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("got %v", err)
			}
		})
	}
}
