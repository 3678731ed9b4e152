package agent

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
)

// A preamble is 16 bytes: 8 of magic, the last of which says who speaks, and a
// nonce. The client chooses the nonce, the server repeats it, and all that
// follows are frames. Bytes in front of a preamble, such as kernel messages
// that went out on the same serial port, are skipped. A server that has just
// opened its line says so with a beacon, upon which the client asks: what it
// sent to a closed serial port is lost, and in the moment before the port is
// in raw mode it is echoed, cut and changed like typed lines. A nonce is
// printable, so that its echo is whole; the magic's first byte never occurs in
// it, so that whatever is cut short, the next preamble is found.
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

const (
	roleClient = '?'
	roleServer = '!'
	roleBeacon = '*'
)

// magic is followed by the role. Its first byte is no frame's kind and occurs
// only once, so that a search for it never has to look back.
const magic = "\xf5GODWIT"

const preambleSize = len(magic) + 1 + len(nonce{})

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

func (e *preambleError) Error() string {
	return fmt.Sprintf("agent protocol: the peer started anew (%q)", e.role)
}

// readPreamble skips everything up to the next preamble.
func readPreamble(r io.ByteReader) (preamble, error) {
	var found []byte // as much of a preamble as there is
	for {
		b, err := r.ReadByte()
		if err != nil {
			return preamble{}, err
		}
		if b == magic[0] {
			found = found[:0] // it occurs nowhere else
		}
		found = append(found, b)
		switch n := len(found); {
		case n <= len(magic) && b != magic[n-1]:
			found = found[:0]
		case n == len(magic)+1:
			if _, ok := preambleRole(found); !ok {
				found = found[:0]
			}
		case n == preambleSize:
			return preamble{role: found[len(magic)], nonce: nonce(found[len(magic)+1:])}, nil
		}
	}
}
