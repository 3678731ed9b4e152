package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/guest/agent"
)

// newAgent is the server of all lines that there are.
func newAgent(children *agent.Reaper) *agent.Server {
	return &agent.Server{
		Version: version(),
		Reaper:  children,
		Shutdown: func(again bool) error {
			if again {
				return power(reboot)
			}
			return power(poweroff)
		},
		SetTime: agent.SetClock,
		Reseed:  agent.Reseed,
		SetMAC:  agent.SetMAC,
	}
}

// serveVsock serves the agent protocol to a host that has given this machine a
// vsock device, and tells it that the machine is up. It tells whether there is
// such a device.
func serveVsock(server *agent.Server) bool {
	l, err := agent.ListenVsock(agent.Port)
	if errors.Is(err, agent.ErrNoVsock) {
		return false
	}
	if err != nil {
		complain(fmt.Errorf("agent: %w", err))
		return false
	}
	go func() { complain(server.ServeVsock(l)) }()
	go agent.Announce(nil)
	return true
}

// serveAgent serves the agent protocol on the first line that there is of those
// in where, separated by commas: vsock, which is served already if there is such
// a device, a serial port (ttyS1), or virtio console ports (vport:PREFIX). It
// returns only if there is none.
func serveAgent(server *agent.Server, where string, overVsock bool) error {
	var errs []error
	for line := range strings.SplitSeq(where, ",") {
		if line != "vsock" {
			errs = append(errs, serveLine(server, line))
			continue
		}
		if overVsock {
			select {}
		}
		errs = append(errs, fmt.Errorf("agent: %w", agent.ErrNoVsock))
	}
	return errors.Join(errs...)
}

// serveLine serves one client after the other on a serial port or on each of
// some virtio console ports.
func serveLine(server *agent.Server, line string) error {
	prefix, virtio := strings.CutPrefix(line, "vport:")
	if !virtio {
		return servePort(server, func() (*os.File, error) { return openSerial(filepath.Join("/dev", line)) })
	}
	ports, err := virtioPorts(prefix)
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	for _, port := range ports {
		all.Go(func() {
			complain(servePort(server, func() (*os.File, error) { return openVirtioPort(port) }))
		})
	}
	all.Wait()
	return nil
}

// servePort serves one client after the other on a port that can be opened
// again and again.
func servePort(server *agent.Server, open func() (*os.File, error)) error {
	for {
		port, err := open()
		if err != nil {
			return fmt.Errorf("agent: %w", err)
		}
		complain(server.Serve(port))
	}
}

// openSerial opens a serial port that carries bytes as they are.
func openSerial(device string) (*os.File, error) {
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := makeRaw(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func makeRaw(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = raw.Control(func(fd uintptr) {
		t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		if err != nil {
			failure = err
			return
		}
		// As cfmakeraw(3), and read(2) returns with whatever there is.
		t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
		t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8 | unix.CLOCAL | unix.CREAD
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
		if failure = unix.IoctlSetTermios(int(fd), unix.TCSETS, t); failure == nil {
			// What came in before went through line editing.
			failure = unix.IoctlSetInt(int(fd), unix.TCFLSH, unix.TCIFLUSH)
		}
	})
	return errors.Join(err, failure)
}

// virtioPorts are the devices of the virtio console ports whose names start
// with prefix.
func virtioPorts(prefix string) ([]string, error) {
	// The pattern is fixed, so Glob cannot fail.
	names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	var ports []string
	for _, n := range names {
		name, err := os.ReadFile(n)
		if err == nil && strings.HasPrefix(string(name), prefix) {
			ports = append(ports, filepath.Join("/dev", filepath.Base(filepath.Dir(n))))
		}
	}
	if len(ports) == 0 {
		return nil, fmt.Errorf("agent: no virtio console port with a name that starts with %q", prefix)
	}
	return ports, nil
}

// openVirtioPort opens a virtio console port and returns when its other end is
// connected.
func openVirtioPort(device string) (*os.File, error) {
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// Without a peer the port reports a hang-up; when one comes, the port
	// becomes writable, which makes the runtime ask again.
	err = raw.Write(func(fd uintptr) bool {
		state := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(state, 0)
		return err == nil && n == 1 && state[0].Revents&unix.POLLHUP == 0
	})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// version of the module that init was built from.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return ""
}
