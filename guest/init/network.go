package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// bringUpNetwork configures the loopback interface, and the first Ethernet
// interface if the command line gave an address.
func bringUpNetwork(o options) error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	defer unix.Close(socket)
	if err := setUp(socket, "lo"); err != nil {
		return err
	}
	if !o.address.IsValid() {
		return nil
	}
	name, err := firstEthernet()
	if err != nil {
		return err
	}
	if err := setAddress(socket, name, o.address); err != nil {
		return err
	}
	if err := setUp(socket, name); err != nil {
		return err
	}
	if !o.gateway.IsValid() {
		return nil
	}
	return addDefaultRoute(o.gateway)
}

// firstEthernet is the first interface, by name, that is a device's.
func firstEthernet() (string, error) {
	// The pattern is fixed, so Glob cannot fail.
	devices, _ := filepath.Glob("/sys/class/net/*/device")
	for _, d := range devices {
		name := filepath.Base(filepath.Dir(d))
		kind, err := os.ReadFile(filepath.Join("/sys/class/net", name, "type"))
		if err == nil && strings.TrimSpace(string(kind)) == fmt.Sprint(unix.ARPHRD_ETHER) {
			return name, nil
		}
	}
	return "", fmt.Errorf("network: godwit.ip is given and there is no Ethernet interface")
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
		if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
			return fmt.Errorf("default route by %s: %w", gateway, unix.Errno(-code))
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
