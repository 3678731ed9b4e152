package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// kind is what a frame is about.
type kind uint8

const (
	kindHello    kind = 1 + iota // server: JSON Info, the first frame
	kindOpen                     // client: JSON request, starts a session
	kindData                     // both: bytes of a stream
	kindEOF                      // both: the stream has ended
	kindCredit                   // both: uint32, more bytes that the peer may send on the stream
	kindSignal                   // client: uint8, signal for the command
	kindResize                   // client: two uint16, rows and columns of the terminal
	kindAbandon                  // client: kill what the session runs
	kindExit                     // server: JSON result, ends a session
	kindPing                     // client: answered by kindPong with the same session number
	kindPong                     // server
	kindShutdown                 // client: uint8, power off (0) or reboot (1)
	kindEnding                   // server: uint8, Ending, when it has nothing more to say; client: the same as an answer
	kindEnd
)

// stream is one direction of bytes within a session.
type stream uint8

const (
	stdin   stream = iota // client to server
	stdout                // server to client
	stderr                // server to client
	streams               // how many there are
)

const (
	// headerSize: kind, stream, session (16 bit), length (16 bit), zero,
	// check. Little endian.
	headerSize = 8
	// maxPayload is what the length can say.
	maxPayload = 1<<16 - 1
	// maxData is the most that is sent as one data frame, so that no
	// session keeps the others waiting for long on a slow line.
	maxData = 32 << 10
)

// ErrCorrupt is wrapped by errors about bytes that are not the protocol's.
var ErrCorrupt = errors.New("agent protocol: corrupt frame")

// frame is one message. The payload of a received frame is valid until the
// next one is read.
type frame struct {
	kind    kind
	stream  stream
	session uint16
	payload []byte
}

// appendFrame appends the encoding of f, whose payload is at most maxPayload
// bytes long.
func appendFrame(b []byte, f frame) []byte {
	start := len(b)
	b = append(b, byte(f.kind), byte(f.stream))
	b = binary.LittleEndian.AppendUint16(b, f.session)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(f.payload)))
	b = append(b, 0)
	b = append(b, check(b[start:]))
	return append(b, f.payload...)
}

// check guards the header: it tells a frame from the bytes of something else
// after a byte was lost on a serial line.
func check(header []byte) byte {
	sum := byte(0x5a)
	for _, b := range header[:headerSize-1] {
		sum = sum<<1 | sum>>7
		sum ^= b
	}
	return sum
}

// parseHeader checks a header and gives the frame without its payload, and the
// payload's length.
func parseHeader(h []byte) (frame, int, error) {
	f := frame{
		kind:    kind(h[0]),
		stream:  stream(h[1]),
		session: binary.LittleEndian.Uint16(h[2:]),
	}
	if f.kind == 0 || f.kind >= kindEnd || f.stream >= streams || h[6] != 0 || h[7] != check(h) {
		return frame{}, 0, fmt.Errorf("%w: header % x", ErrCorrupt, h[:headerSize])
	}
	return f, int(binary.LittleEndian.Uint16(h[4:])), nil
}

// readFrame reads a frame into buf, which holds at least headerSize+maxPayload
// bytes. A preamble in the place of a frame is reported as a *preambleError.
func readFrame(r io.Reader, buf []byte) (frame, error) {
	header := buf[:headerSize]
	if _, err := io.ReadFull(r, header); err != nil {
		return frame{}, err
	}
	if role, ok := preambleRole(header); ok {
		p := preamble{role: role}
		if _, err := io.ReadFull(r, p.nonce[:]); err != nil {
			return frame{}, err
		}
		return frame{}, &preambleError{p}
	}
	f, n, err := parseHeader(header)
	if err != nil {
		return frame{}, err
	}
	f.payload = buf[headerSize : headerSize+n]
	if _, err := io.ReadFull(r, f.payload); err != nil {
		return frame{}, err
	}
	return f, nil
}
