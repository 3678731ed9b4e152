package agent

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
)

// A preamble is 16 bytes: 8 of magic, the last of which says who speaks, and a
// nonce. The client chooses the nonce, the server repeats it, and all that
// follows are frames. Bytes in front of a preamble, such as kernel messages
// that went out on the same serial port, are skipped. A server that has just
// opened its line says so with a beacon, since what a client sent to a closed
// serial port is lost; the client then asks again.
//
// A terminal line that is not in raw mode yet echoes what the client says, and
// swallows or doubles control characters as it does. So a nonce is of
// printable characters, one with any other byte in it does not count, and each
// end overhears its own kind.
type preamble struct {
	role  byte
	nonce nonce
}

type nonce [8]byte

// newNonce is a random nonce in hexadecimal digits.
func newNonce() (n nonce) {
	var b [len(n) / 2]byte
	// Never fails, by its contract.
	rand.Read(b[:])
	hex.Encode(n[:], b[:])
	return n
}

// nonceText is a random name.
func nonceText() string {
	n := newNonce()
	return string(n[:])
}

const (
	roleClient = '?'
	roleServer = '!'
	roleBeacon = '*'
)

// magic is followed by the role. Its first byte is no frame's kind and occurs
// only once, so that a search for it never has to look back.
const magic = "\xf5GODWIT"

const preambleSize = len(magic) + 1 + len(nonce{})

// beacon is the preamble of a server that listens.
func beacon() preamble { return preamble{role: roleBeacon, nonce: nonce([]byte("listens!"))} }

func (p preamble) bytes() []byte {
	return append(append([]byte(magic), p.role), p.nonce[:]...)
}

// preambleRole tells whether the 8 bytes b begin a preamble.
func preambleRole(b []byte) (role byte, ok bool) {
	rest, ok := bytes.CutPrefix(b, []byte(magic))
	if !ok || len(rest) != 1 {
		return 0, false
	}
	return rest[0], rest[0] == roleClient || rest[0] == roleServer || rest[0] == roleBeacon
}

// preambleError reports a preamble where a frame was expected: the peer has
// started anew.
type preambleError struct{ preamble }

// Error says which side started anew.
func (e *preambleError) Error() string {
	return fmt.Sprintf("agent protocol: the peer started anew (%q)", e.role)
}

// readPreamble skips everything up to the next preamble of one of the roles.
func readPreamble(r io.ByteReader, roles string) (preamble, error) {
	var seen [preambleSize]byte // what may become a preamble
	n := 0
	for n < preambleSize {
		b, err := r.ReadByte()
		if err != nil {
			return preamble{}, err
		}
		if !fits(n, b, roles) {
			n = 0
		}
		if n > 0 || b == magic[0] {
			seen[n] = b
			n++
		}
	}
	return preamble{role: seen[len(magic)], nonce: nonce(seen[len(magic)+1:])}, nil
}

// fits tells whether b can be byte number n of a preamble.
func fits(n int, b byte, roles string) bool {
	switch {
	case n < len(magic):
		return b == magic[n]
	case n == len(magic):
		return strings.IndexByte(roles, b) >= 0
	}
	return b > ' ' && b < 0x7f
}
