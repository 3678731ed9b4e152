// Package tap is the back end of a network device that is a tap interface of
// the host: what the guest sends comes out of it, and what the host or a bridge
// sends to it goes to the guest.
//
// Making an interface needs CAP_NET_ADMIN. One that the administrator has made
// for a user does not:
//
//	ip tuntap add vm0 mode tap user alice && ip link set vm0 up
package tap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	device = "/dev/net/tun"
	// pattern is what the kernel makes the name of a new interface of.
	pattern = "godwit%d"
	// headerSize is that of struct virtio_net_hdr_v1.
	headerSize = 12
	// offloads are those that Linux has for frames to and from a tap.
	offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
)

// Config says which interface it is. The zero value is a new one.
type Config struct {
	// Name of the interface, which is made if it is not there. "" lets the
	// kernel find a name for a new one.
	Name string
	// Queues is the number of queue pairs; 0 stands for 1.
	Queues int
	// MTU in bytes is set on the interface; 0 leaves it as it is.
	MTU int
	// Bridge is the name of a bridge that the interface is put into; "" puts
	// it nowhere.
	Bridge string
}

// Tap is an open tap interface. It implements net.Backend.
type Tap struct {
	name     string
	mtu      int
	fds      []int
	attached int // how many of fds, from the first, are queues now
}

// Open opens the interface and brings it up. A new one is gone after Close.
func Open(c Config) (*Tap, error) {
	t := &Tap{name: c.Name}
	if err := t.open(c); err != nil {
		return nil, fmt.Errorf("tap interface %s: %w", display(c.Name), errors.Join(err, t.Close()))
	}
	return t, nil
}

func display(name string) string {
	if name == "" {
		return "(new)"
	}
	return name
}

func (t *Tap) open(c Config) error {
	if len(t.name) >= unix.IFNAMSIZ {
		return fmt.Errorf("name of %d bytes, want at most %d", len(t.name), unix.IFNAMSIZ-1)
	}
	flags := uint16(0)
	if c.Queues > 1 {
		flags = unix.IFF_MULTI_QUEUE
	}
	err := t.attach(flags)
	if errors.Is(err, unix.EINVAL) && flags == 0 {
		// One that was made for several queues may have just one.
		flags = unix.IFF_MULTI_QUEUE
		err = t.attach(flags)
	}
	for err == nil && len(t.fds) < c.Queues {
		err = t.attach(flags)
	}
	if err != nil {
		return explain(err, c)
	}
	t.attached = len(t.fds)
	return t.configure(c)
}

// attach opens one more queue of the interface, and makes the interface if
// there is none of the name.
func (t *Tap) attach(flags uint16) error {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: device, Err: err}
	}
	if err := t.setUp(fd, flags); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	t.fds = append(t.fds, fd)
	return nil
}

func (t *Tap) setUp(fd int, flags uint16) error {
	name := t.name
	if name == "" {
		name = pattern
	}
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	t.name = r.Name()
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, headerSize); err != nil {
		return fmt.Errorf("TUNSETVNETHDRSZ: %w", err)
	}
	return nil
}

// explain says what to do about an error.
func explain(err error, c Config) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: the kernel's tun module is missing; load it with: modprobe tun", err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: this user may not use %s; user networking (--net user) needs no privileges", err, device)
	case errors.Is(err, unix.EPERM):
		name := c.Name
		if name == "" {
			name = "vm0"
		}
		queues := ""
		if c.Queues > 1 {
			queues = " multi_queue"
		}
		return fmt.Errorf("%w: this needs CAP_NET_ADMIN, or an interface made for this user by: ip tuntap add %s mode tap user %d%s; "+
			"user networking (--net user) needs no privileges", err, name, os.Getuid(), queues)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: another program uses it", err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: it is no tap interface, or was not made for %d queues (ip tuntap add NAME mode tap multi_queue)", err, max(c.Queues, 1))
	case errors.Is(err, unix.E2BIG):
		return fmt.Errorf("%w: %d queues are more than a tap interface can have", err, c.Queues)
	}
	return err
}

// configure sets and reads what belongs to the interface and not to a queue.
func (t *Tap) configure(c Config) (err error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket to set up the interface: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(s)) }()
	r, err := unix.NewIfreq(t.name)
	if err != nil {
		return err
	}
	if c.MTU != 0 {
		r.SetUint32(uint32(c.MTU))
		if err := unix.IoctlIfreq(s, unix.SIOCSIFMTU, r); err != nil {
			return privileged(fmt.Sprintf("set the MTU to %d", c.MTU), fmt.Sprintf("ip link set %s mtu %d", t.name, c.MTU), err)
		}
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFMTU, r); err != nil {
		return fmt.Errorf("read the MTU: %w", err)
	}
	t.mtu = int(r.Uint32())
	if c.Bridge != "" {
		if err := t.join(s, c.Bridge); err != nil {
			return err
		}
	}
	return t.up(s, r)
}

// up brings the interface up, if it is not.
func (t *Tap) up(s int, r *unix.Ifreq) error {
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, r); err != nil {
		return fmt.Errorf("read the flags: %w", err)
	}
	if r.Uint16()&unix.IFF_UP != 0 {
		return nil
	}
	r.SetUint16(r.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r); err != nil {
		return privileged("bring it up", "ip link set "+t.name+" up", err)
	}
	return nil
}

// join puts the interface into a bridge, if it is not there already.
func (t *Tap) join(s int, bridge string) error {
	if at, err := os.Readlink("/sys/class/net/" + t.name + "/master"); err == nil && filepath.Base(at) == bridge {
		return nil
	}
	if err := standAside(s, t.name); err != nil {
		return privileged("set its address", "ip link set "+t.name+" address fe:54:00:00:00:01", err)
	}
	port, err := unix.NewIfreq(t.name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFINDEX, port); err != nil {
		return fmt.Errorf("read the index: %w", err)
	}
	r, err := unix.NewIfreq(bridge)
	if err != nil {
		return fmt.Errorf("bridge %q: %w", bridge, err)
	}
	r.SetUint32(port.Uint32())
	err = unix.IoctlIfreq(s, unix.SIOCBRADDIF, r)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: there is no bridge %s; make one with: ip link add %s type bridge && ip link set %s up", err, bridge, bridge, bridge)
	}
	if err != nil {
		return privileged("put it into bridge "+bridge, "ip link set "+t.name+" master "+bridge, err)
	}
	return nil
}

// privileged says how an administrator does what failed.
func privileged(what, command string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%s: %w: let the administrator do it: %s", what, err, command)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Name is that of the interface.
func (t *Tap) Name() string { return t.name }

// Descriptors has one for each queue.
func (t *Tap) Descriptors() []int { return t.fds }

// MTU is that of the interface when it was opened.
func (t *Tap) MTU() int { return t.mtu }

// Offloads are all but those for UDP.
func (t *Tap) Offloads() uint32 { return offloads }

// SetOffloads says what the guest can do with frames from the host. Where it
// can do nothing, the kernel completes checksums and cuts frames itself.
func (t *Tap) SetOffloads(offloads uint32) error {
	if err := unix.IoctlSetInt(t.fds[0], unix.TUNSETOFFLOAD, int(offloads)); err != nil {
		return fmt.Errorf("tap interface %s: set the offloads to %#x: %w", t.name, offloads, err)
	}
	return nil
}

// SetPairs makes the first n descriptors queues, so that the kernel spreads
// what it sends over those. The others have nothing to read.
func (t *Tap) SetPairs(n int) error {
	for ; t.attached < n; t.attached++ {
		if err := t.setQueue(t.attached, unix.IFF_ATTACH_QUEUE); err != nil {
			return err
		}
	}
	for ; t.attached > n; t.attached-- {
		if err := t.setQueue(t.attached-1, unix.IFF_DETACH_QUEUE); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tap) setQueue(i int, flags uint16) error {
	r, err := unix.NewIfreq(t.name)
	if err != nil {
		return err
	}
	r.SetUint16(flags)
	if err := unix.IoctlIfreq(t.fds[i], unix.TUNSETQUEUE, r); err != nil {
		return fmt.Errorf("tap interface %s: switch queue %d: %w", t.name, i, err)
	}
	return nil
}

// Err is that of an interface which is no more.
func (t *Tap) Err() error { return fmt.Errorf("tap interface %s is gone", t.name) }

// Close closes the interface.
func (t *Tap) Close() error {
	var errs []error
	for _, fd := range t.fds {
		errs = append(errs, unix.Close(fd))
	}
	t.fds = nil
	return errors.Join(errs...)
}
