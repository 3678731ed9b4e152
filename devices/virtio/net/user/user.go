// Package user is the back end of a network device that needs no privileges: a
// network stack in another process makes connections on behalf of the guest, as
// any program may.
//
// The guest gets its address by DHCP. It reaches what the host reaches, resolves
// names with the host's resolver, and finds the host itself, services bound to
// 127.0.0.1 included, at HostIP ("host.containers.internal"). Forwards let the
// host reach servers of the guest.
//
// The stack is gVisor's, with services of gvisor-tap-vsock. It is in a process of
// its own (command godwit-net) because it would cost every start of a machine
// several milliseconds and several MiB, used or not, and so that a guest that
// finds a bug in it is not in the hypervisor. The process ends when the socket to
// it is closed, and so with the hypervisor, however that ends.
package user

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Where things are in the guest's network.
const (
	Subnet    = "192.168.127.0/24"
	GatewayIP = "192.168.127.1"   // router, DHCP and DNS server
	GuestIP   = "192.168.127.2"   // of the guest
	HostIP    = "192.168.127.254" // the host's 127.0.0.1
)

// Program is the name of the program with the network stack.
const Program = "godwit-net"

// Limits of the MTU in bytes.
const (
	MinMTU     = 576 // RFC 791: what every IPv4 host takes
	MaxMTU     = 65521
	DefaultMTU = 1500
)

const (
	// Offloads are those that the stack has, both ways. There is no IPv6.
	Offloads uint32 = unix.TUN_F_CSUM | unix.TUN_F_TSO4
	// Descriptor is where the program finds its end of the socket.
	Descriptor = 3
	// MaxSettings is the size of the largest settings, in bytes.
	MaxSettings = 64 << 10
	// OffloadsSize is that of a message which is no frame but the offloads
	// that the guest can do, as a little-endian number. A frame is larger.
	OffloadsSize = 4
	// OK is the answer of the program to good settings. Another one says what
	// is wrong.
	OK = "ok"

	// startTime and stopTime are how long the program may take.
	startTime = 10 * time.Second
	stopTime  = 2 * time.Second
	// socketBuffer is how much may be on the way; the kernel may allow less.
	socketBuffer = 4 << 20
)

// Config says what the network is like.
type Config struct {
	Settings
	// Program is the path of the program; "" is Program beside the running
	// one, or else in PATH.
	Program string
}

// Settings are what the program is told: the first message on the socket.
type Settings struct {
	// MAC is the guest's, which gets GuestIP.
	MAC [6]byte
	// MTU in bytes; 0 stands for DefaultMTU.
	MTU int
	// Forwards are ports of the host that lead to the guest.
	Forwards []Forward
}

// Forward is a port of the host that leads to a port of the guest.
type Forward struct {
	// Protocol is "tcp" or "udp".
	Protocol string
	// Host is where the host listens.
	Host netip.AddrPort
	// Guest is the port of the guest.
	Guest uint16
}

// String is the form of the command line.
func (f Forward) String() string { return fmt.Sprintf("%s:%v:%d", f.Protocol, f.Host, f.Guest) }

// Check tells what is wrong with the settings.
func (s *Settings) Check() error {
	if s.MTU != 0 && (s.MTU < MinMTU || s.MTU > MaxMTU) {
		return fmt.Errorf("MTU %d, want %d to %d", s.MTU, MinMTU, MaxMTU)
	}
	for _, f := range s.Forwards {
		if f.Protocol != "tcp" && f.Protocol != "udp" {
			return fmt.Errorf("forward %v: protocol %q, want tcp or udp", f, f.Protocol)
		}
		if !f.Host.IsValid() || f.Host.Port() == 0 || f.Guest == 0 {
			return fmt.Errorf("forward %v: want an address and port of the host, and a port of the guest", f)
		}
	}
	return nil
}

// Network is a running network stack. It implements net.Backend.
type Network struct {
	fd  int
	mtu int
	// command is nil for a network that was passed, of which process is a descriptor.
	command *exec.Cmd
	process int
	// released is set while another process has it: Close lets it be.
	released bool
	words    words
	ended    chan struct{} // closed when the process has ended
}

// Start starts the program and returns when it listens on all forwards.
func Start(c Config) (*Network, error) {
	n := &Network{fd: -1, process: -1, mtu: cmp.Or(c.MTU, DefaultMTU), ended: make(chan struct{})}
	err := c.Check()
	if err == nil {
		err = n.start(c)
	}
	if err != nil {
		return nil, fmt.Errorf("user networking: %w", errors.Join(err, n.Close()))
	}
	return n, nil
}

func (n *Network) start(c Config) error {
	settings, err := json.Marshal(c.Settings)
	if err != nil {
		return err
	}
	if len(settings) > MaxSettings {
		return fmt.Errorf("%d forwards are too many", len(c.Forwards))
	}
	path, err := find(c.Program)
	if err != nil {
		return err
	}
	if err := n.run(path); err != nil {
		return err
	}
	if _, err := unix.Write(n.fd, settings); err != nil && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("tell %s the settings: %w", path, err)
	}
	if err := n.awaitOK(); err != nil {
		return err
	}
	return unix.SetNonblock(n.fd, true)
}

// find is the path of the program.
func find(path string) (string, error) {
	if path != "" {
		return path, nil
	}
	self, err := os.Executable()
	if err == nil {
		path = filepath.Join(filepath.Dir(self), Program)
		if _, err = os.Stat(path); err == nil {
			return path, nil
		}
	}
	if path, err := exec.LookPath(Program); err == nil {
		return path, nil
	}
	return "", fmt.Errorf("the program %s, which comes with godwit, is neither beside it (%w) nor in PATH: install it there, or use a tap interface", Program, err)
}

// run starts the program with a socket.
func (n *Network) run(path string) error {
	// One frame is one message, and nothing gets lost.
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket pair: %w", err)
	}
	n.fd = fds[0]
	peer := os.NewFile(uintptr(fds[1]), "peer")
	defer peer.Close()
	for _, fd := range fds {
		// More than the limit of unprivileged users is cut down to it.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer); err != nil {
			return fmt.Errorf("size of the socket: %w", err)
		}
	}
	c := exec.Command(path)
	c.ExtraFiles = []*os.File{peer}
	c.Stderr = &n.words
	// Ctrl-C on the terminal is for the hypervisor, which ends this program
	// when it is done.
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return fmt.Errorf("start the network process: %w", err)
	}
	n.command = c
	go func() {
		// How it ended is in the command.
		_ = c.Wait()
		close(n.ended)
	}()
	return nil
}

// awaitOK waits for the answer to the settings.
func (n *Network) awaitOK() error {
	tv := unix.NsecToTimeval(int64(startTime))
	if err := unix.SetsockoptTimeval(n.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	answer := make([]byte, MaxSettings)
	size, err := unix.Read(n.fd, answer)
	for errors.Is(err, unix.EINTR) {
		size, err = unix.Read(n.fd, answer)
	}
	switch {
	case errors.Is(err, unix.EAGAIN):
		return fmt.Errorf("%s did not answer within %v", n.command.Path, startTime)
	case err != nil || size == 0:
		return n.Err()
	case string(answer[:size]) != OK:
		return errors.New(string(answer[:size]))
	}
	return nil
}

// Err is how the process ended and its last words, after the socket said that it
// has. It waits a moment for that.
func (n *Network) Err() error {
	if n.command == nil {
		return errors.New("the network's process has ended")
	}
	select {
	case <-n.ended:
		return fmt.Errorf("%s ended (%v): %s", n.command.Path, n.command.ProcessState, n.words.text())
	case <-time.After(stopTime):
		return fmt.Errorf("%s has closed its socket", n.command.Path)
	}
}

// PID is that of the process, which was started here.
func (n *Network) PID() int { return n.command.Process.Pid }

// Descriptors has one, for the only queue pair.
func (n *Network) Descriptors() []int { return []int{n.fd} }

// MTU is that of the network.
func (n *Network) MTU() int { return n.mtu }

// Offloads are those of the stack.
func (n *Network) Offloads() uint32 { return Offloads }

// SetOffloads tells the stack what the guest can do.
func (n *Network) SetOffloads(offloads uint32) error {
	n.released = false // who starts the device has the network
	message := binary.LittleEndian.AppendUint32(nil, offloads)
	_, err := unix.Write(n.fd, message)
	for errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
		room := []unix.PollFd{{Fd: int32(n.fd), Events: unix.POLLOUT}}
		if ready, err := unix.Poll(room, int(stopTime.Milliseconds())); ready == 0 && err == nil {
			return errors.New("the network process takes nothing any more")
		}
		_, err = unix.Write(n.fd, message)
	}
	if err == nil || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil // that it has ended is seen by who receives
	}
	return fmt.Errorf("tell the network process of the offloads: %w", err)
}

// SetPairs has nothing to do for the only pair.
func (n *Network) SetPairs(pairs int) error {
	if pairs != 1 {
		return fmt.Errorf("user networking has one queue pair, not %d", pairs)
	}
	return nil
}

// Close ends the process, unless another one has the network (Release).
func (n *Network) Close() error {
	var err error
	if n.fd >= 0 {
		err = unix.Close(n.fd)
		n.fd = -1
	}
	if n.command == nil {
		return errors.Join(err, n.endPassed())
	}
	if n.released {
		return err
	}
	select {
	case <-n.ended:
	case <-time.After(stopTime):
		err = errors.Join(err, n.command.Process.Kill())
		<-n.ended
	}
	return err
}
