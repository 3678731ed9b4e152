// Package usernet is the network stack behind package user: what the program
// godwit-net runs.
package usernet

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio/net/user"
)

// Serve runs the network of one guest on a socket of SOCK_SEQPACKET, until its
// other end is closed. The first message are the user.Settings as JSON, which
// it answers with user.OK or with what is wrong.
func Serve(fd int) error {
	l, err := setUp(fd)
	answer := user.OK
	if err != nil {
		answer = err.Error()
	}
	if _, err := unix.Write(fd, []byte(answer)); err != nil {
		return fmt.Errorf("answer to the settings: %w", err)
	}
	if err != nil {
		return err
	}
	return l.receive()
}

func setUp(fd int) (*link, error) {
	p := make([]byte, user.MaxSettings)
	n, err := unix.Read(fd, p)
	if err != nil {
		return nil, fmt.Errorf("read the settings: %w", err)
	}
	var s user.Settings
	if err := json.Unmarshal(p[:n], &s); err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	if err := s.Check(); err != nil {
		return nil, err
	}
	s.MTU = cmp.Or(s.MTU, user.DefaultMTU)
	// The library logs what the guest does wrong.
	logrus.SetOutput(io.Discard)
	l := &link{fd: fd, mtu: uint32(s.MTU)}
	return l, newStack(l, s)
}

// Limits of the process: what a guest can make it use at most. Each connection
// takes one descriptor and up to some hundred KiB.
const (
	maxFiles  = 4096
	maxMemory = 512 << 20 // which the collector of garbage aims at
)

// Limit bounds what the process uses of the host.
func Limit() error {
	debug.SetMemoryLimit(maxMemory)
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	l.Max = min(l.Max, maxFiles)
	l.Cur = l.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("limit the number of open files to %d: %w", l.Max, err)
	}
	return nil
}
