package agent

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// SetMAC gives the network interface with the address old another one, for
// Server.SetMAC. What is connected stays so.
func SetMAC(old, address net.HardwareAddr) error {
	index, err := interfaceOf(old)
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer unix.Close(s)
	if err := unix.Sendto(s, setAddress(index, address), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(s, answer, 0)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	// The answer is a struct nlmsghdr and an errno, 0 for success (netlink(7)).
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("netlink: an answer of %d bytes that is none", n)
	}
	if errno := -int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); errno != 0 {
		return fmt.Errorf("set the address of interface %d to %v: %w", index, address, unix.Errno(errno))
	}
	return nil
}

// setAddress is the request RTM_SETLINK with IFLA_ADDRESS (rtnetlink(7)).
func setAddress(index uint32, address net.HardwareAddr) []byte {
	ne := binary.NativeEndian
	attribute := unix.SizeofRtAttr + len(address)
	length := unix.SizeofNlMsghdr + unix.SizeofIfInfomsg + (attribute+3)&^3
	m := make([]byte, length)
	ne.PutUint32(m, uint32(length))
	ne.PutUint16(m[4:], unix.RTM_SETLINK)
	ne.PutUint16(m[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	info := m[unix.SizeofNlMsghdr:]
	ne.PutUint32(info[4:], index)
	attr := info[unix.SizeofIfInfomsg:]
	ne.PutUint16(attr, uint16(attribute))
	ne.PutUint16(attr[2:], unix.IFLA_ADDRESS)
	copy(attr[unix.SizeofRtAttr:], address)
	return m
}

// interfaceOf finds the number of the network interface with the address.
func interfaceOf(address net.HardwareAddr) (uint32, error) {
	links, err := filepath.Glob("/sys/class/net/*/address")
	if err != nil {
		return 0, err
	}
	for _, link := range links {
		text, err := os.ReadFile(link)
		if err != nil || strings.TrimSpace(string(text)) != address.String() {
			continue
		}
		text, err = os.ReadFile(filepath.Join(filepath.Dir(link), "ifindex"))
		if err != nil {
			return 0, err
		}
		index, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
		return uint32(index), err
	}
	return 0, fmt.Errorf("there is no network interface with the address %v", address)
}

// SetMAC gives the guest's network interface with the address old another one.
func (c *Client) SetMAC(ctx context.Context, old, address net.HardwareAddr) error {
	if err := c.simple(ctx, request{Op: opSetMAC, Args: []string{old.String(), address.String()}}); err != nil {
		return fmt.Errorf("set the address of the guest's network card %v: %w", old, err)
	}
	return nil
}

func (c *connection) setMAC(args []string) error {
	if c.SetMAC == nil {
		return fmt.Errorf("this agent does not set addresses of network cards")
	}
	if len(args) != 2 {
		return fmt.Errorf("%d addresses, want the old and the new one", len(args))
	}
	old, err := net.ParseMAC(args[0])
	if err != nil {
		return err
	}
	address, err := net.ParseMAC(args[1])
	if err != nil {
		return err
	}
	if len(old) != 6 || len(address) != 6 {
		return fmt.Errorf("addresses of %d and %d bytes, want 6", len(old), len(address))
	}
	return c.SetMAC(old, address)
}
