package net

import (
	"crypto/sha256"
	"errors"
	"fmt"
	stdnet "net"
)

// MAC is an Ethernet address.
type MAC [6]byte

// Bits of the first byte of a MAC address (IEEE 802).
const (
	macGroup = 1 // it is the address of several
	macLocal = 2 // it was not given by a manufacturer
)

// ErrMAC is wrapped by the error about a MAC address that a network card cannot
// have.
var ErrMAC = errors.New("not the address of one network card")

// ParseMAC parses six bytes in hexadecimal, with colons or hyphens between them.
func ParseMAC(text string) (m MAC, err error) {
	a, err := stdnet.ParseMAC(text)
	if err != nil || len(a) != len(m) {
		return m, fmt.Errorf("%q is no MAC address: want one such as 02:12:34:56:78:9a", text)
	}
	m = MAC(a)
	return m, m.check()
}

// DefaultMAC is the address of a machine's network device of the given index:
// always the same for the same name, and another one for another name or index.
func DefaultMAC(name string, index int) MAC {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d", name, index))
	m := MAC(sum[:6])
	m[0] = m[0]&^macGroup | macLocal
	return m
}

// String is the usual form, with colons.
func (m MAC) String() string { return stdnet.HardwareAddr(m[:]).String() }

func (m MAC) check() error {
	if m == (MAC{}) || m[0]&macGroup != 0 {
		return fmt.Errorf("MAC address %v: %w: want one that is not zero and whose first byte is even", m, ErrMAC)
	}
	return nil
}
