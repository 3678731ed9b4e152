package agent

import (
	"bytes"
	"fmt"
	"io"
)

// A preamble is 16 bytes: 8 of magic, the last of which says who speaks, and a
// nonce. The client chooses the nonce, the server repeats it, and all that
// follows are frames. Bytes in front of a preamble, such as kernel messages
// that went out on the same serial port, are skipped. A server that has just
// opened its line says so with a beacon, since what a client sent to a closed
// serial port is lost; the client then asks again.
type preamble struct {
	role  byte
	nonce nonce
}

type nonce [8]byte

const (
	roleClient = '?'
	roleServer = '!'
	roleBeacon = '*'
)

// magic is followed by the role. Its first byte is no frame's kind and occurs
// only once, so that a search for it never has to look back.
const magic = "\xf5GODWIT"

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
	matched := 0
	for {
		b, err := r.ReadByte()
		if err != nil {
			return preamble{}, err
		}
		switch {
		case matched == len(magic):
			if _, ok := preambleRole(append([]byte(magic), b)); ok {
				return readNonce(r, b)
			}
			matched = 0
		case b == magic[matched]:
			matched++
			continue
		default:
			matched = 0
		}
		if b == magic[0] {
			matched = 1
		}
	}
}

func readNonce(r io.ByteReader, role byte) (preamble, error) {
	p := preamble{role: role}
	for i := range p.nonce {
		b, err := r.ReadByte()
		if err != nil {
			return preamble{}, err
		}
		p.nonce[i] = b
	}
	return p, nil
}
