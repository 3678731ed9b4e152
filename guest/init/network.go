package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Whether and how the first Ethernet interface, or all of them, are configured.
const (
	netAuto   = ""       // DHCP, without waiting long
	netDHCP   = "dhcp"   // DHCP, and the system waits for it
	netStatic = "static" // the address on the command line
	netOff    = "off"
)

const (
	// dhcpPatience is how long the start waits for an address that nobody
	// has asked for expressly, and dhcpPatienceAsked for one that somebody
	// has. DHCP goes on in the background.
	dhcpPatience      = time.Second
	dhcpPatienceAsked = 15 * time.Second
)

// bringUpNetwork configures the loopback interface, and the Ethernet interfaces
// as the options say.
func bringUpNetwork(o options) error {
	if err := withSocket(func(s int) error { return setUp(s, "lo") }); err != nil {
		return err
	}
	switch interfaces := ethernets(); {
	case o.network == netOff || len(interfaces) == 0 && o.network == netAuto:
		return nil
	case len(interfaces) == 0:
		return errors.New("network: godwit.ip is given and there is no Ethernet interface")
	case o.network == netStatic:
		return useLease(interfaces[0], lease{address: o.address, router: o.gateway})
	default:
		return configureByDHCP(o, interfaces)
	}
}

// configureByDHCP asks for the addresses of all interfaces at once, and waits for
// the first answer.
func configureByDHCP(o options, interfaces []string) error {
	first := make(chan struct{}, 1)
	for _, name := range interfaces {
		if err := withSocket(func(s int) error { return setUp(s, name) }); err != nil {
			return err
		}
		mac, err := hardwareAddress(name)
		if err != nil {
			return err
		}
		client, err := newDHCPClient(name, mac)
		if err != nil {
			return err
		}
		go func() {
			complain(client.run(func(l lease) {
				complain(useLease(name, l))
				select {
				case first <- struct{}{}:
				default:
				}
			}))
		}()
	}
	patience := dhcpPatience
	if o.network == netDHCP {
		patience = dhcpPatienceAsked
	}
	select {
	case <-first:
	case <-time.After(patience):
		if o.network == netDHCP {
			return fmt.Errorf("network: no DHCP server has answered for %v", patience)
		}
	}
	return nil
}

// useLease gives an interface what it has been granted.
func useLease(name string, l lease) error {
	err := withSocket(func(s int) error {
		if l.mtu != 0 {
			complain(setMTU(s, name, l.mtu))
		}
		if err := setAddress(s, name, l.address); err != nil {
			return err
		}
		return setUp(s, name)
	})
	if err == nil && l.router.IsValid() {
		err = addDefaultRoute(l.router)
	}
	if err == nil && len(l.dns) > 0 {
		err = useResolver(l)
	}
	return err
}

// useResolver makes the servers of a lease those that /etc/resolv.conf names. The
// file itself is not changed: it may belong to a disk image.
func useResolver(l lease) error {
	const file, own = "/etc/resolv.conf", "/run/resolv.conf"
	_, err := os.Stat(own)
	mounted := err == nil
	if err := os.WriteFile(own, []byte(resolvConf(l)), 0o644); err != nil || mounted {
		return err
	}
	// It may be a link to a file that a service would write.
	if target, err := os.Readlink(file); err == nil {
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(file), target)
		}
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	f, err := os.OpenFile(file, os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Mount(own, file, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

func resolvConf(l lease) string {
	var b strings.Builder
	if l.domain != "" {
		fmt.Fprintf(&b, "search %s\n", l.domain)
	}
	for _, server := range l.dns {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	return b.String()
}

// withSocket calls f with a socket for the ioctls of interfaces.
func withSocket(f func(socket int) error) error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	defer unix.Close(socket)
	return f(socket)
}

// ethernets are the Ethernet interfaces that are devices, by name.
func ethernets() []string {
	// The pattern is fixed, so Glob cannot fail.
	devices, _ := filepath.Glob("/sys/class/net/*/device")
	var names []string
	for _, d := range devices {
		name := filepath.Base(filepath.Dir(d))
		if attribute(name, "type") == fmt.Sprint(unix.ARPHRD_ETHER) {
			names = append(names, name)
		}
	}
	return names
}

// attribute is an attribute of an interface in sysfs, empty if there is none.
func attribute(name, key string) string {
	value, err := os.ReadFile(filepath.Join("/sys/class/net", name, key))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(value))
}

func hardwareAddress(name string) ([6]byte, error) {
	text := attribute(name, "address")
	b, err := hex.DecodeString(strings.ReplaceAll(text, ":", ""))
	if err != nil || len(b) != 6 {
		return [6]byte{}, fmt.Errorf("interface %s: hardware address %q is none of Ethernet", name, text)
	}
	return [6]byte(b), nil
}

func setMTU(socket int, name string, mtu uint16) error {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	request.SetUint32(uint32(mtu))
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFMTU, request); err != nil {
		return fmt.Errorf("interface %s: MTU %d: %w", name, mtu, err)
	}
	return nil
}

func setUp(socket int, name string) error {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("interface %s: set up: %w", name, err)
	}
	return nil
}

func setAddress(socket int, name string, address netip.Prefix) error {
	mask := make([]byte, 4)
	binary.BigEndian.PutUint32(mask, ^uint32(0)<<(32-address.Bits()))
	for _, step := range []struct {
		request uint
		value   []byte
	}{
		{unix.SIOCSIFADDR, address.Addr().AsSlice()},
		{unix.SIOCSIFNETMASK, mask},
	} {
		request, err := unix.NewIfreq(name)
		if err == nil {
			err = request.SetInet4Addr(step.value)
		}
		if err == nil {
			err = unix.IoctlIfreq(socket, step.request, request)
		}
		if err != nil {
			return fmt.Errorf("interface %s: address %s: %w", name, address, err)
		}
	}
	return nil
}

// addDefaultRoute asks for a route by rtnetlink, whose messages can be written
// without pointers (rtnetlink(7)).
func addDefaultRoute(gateway netip.Addr) error {
	socket, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("default route: %w", err)
	}
	defer unix.Close(socket)
	if err := unix.Sendto(socket, routeMessage(gateway), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("default route by %s: %w", gateway, err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(socket, answer, 0)
	if err != nil {
		return fmt.Errorf("default route by %s: %w", gateway, err)
	}
	// NLMSG_ERROR: after the header, a negative errno or 0.
	if n >= unix.SizeofNlMsghdr+4 {
		code := unix.Errno(-int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])))
		// With a lease that is renewed the route is there.
		if code != 0 && code != unix.EEXIST {
			return fmt.Errorf("default route by %s: %w", gateway, code)
		}
	}
	return nil
}

// routeMessage is RTM_NEWROUTE for 0.0.0.0/0 by gateway: struct nlmsghdr,
// struct rtmsg, and one attribute RTA_GATEWAY.
func routeMessage(gateway netip.Addr) []byte {
	b := make([]byte, 0, 64)
	ne := binary.NativeEndian
	const size = unix.SizeofNlMsghdr + unix.SizeofRtMsg + unix.SizeofRtAttr + 4
	b = ne.AppendUint32(b, size)
	b = ne.AppendUint16(b, unix.RTM_NEWROUTE)
	b = ne.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_CREATE|unix.NLM_F_ACK)
	b = ne.AppendUint32(b, 1) // sequence number
	b = ne.AppendUint32(b, 0) // port: the kernel's

	b = append(b, unix.AF_INET, 0, 0, 0) // family, lengths of destination and source, TOS
	b = append(b, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST)
	b = ne.AppendUint32(b, 0) // flags

	b = ne.AppendUint16(b, unix.SizeofRtAttr+4)
	b = ne.AppendUint16(b, unix.RTA_GATEWAY)
	return append(b, gateway.AsSlice()...)
}
