package stream

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Version is that of the preamble, the token exchange and the frames. Peers with
// different versions refuse each other.
const Version = 1

// SetUpTime is how long a connection may take until it can be used.
const SetUpTime = 20 * time.Second

// ID names one migration.
type ID [16]byte

// NewID makes up an ID.
func NewID() ID {
	var id ID
	rand.Read(id[:])
	return id
}

// String is the ID in 32 hexadecimal digits, as it is in file names and in JSON.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText and UnmarshalText are for JSON: 32 hexadecimal digits.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is the reverse of MarshalText.
func (id *ID) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(id)) {
		return fmt.Errorf("migration ID of %d characters: want %d hexadecimal digits", len(text), hex.EncodedLen(len(id)))
	}
	if _, err := hex.Decode(id[:], text); err != nil {
		return fmt.Errorf("migration ID %q: %w", text, err)
	}
	return nil
}

// Channel says what a connection is for.
type Channel uint8

// The channels. Control is the first of a migration and there is one; Data carry
// pages, each with an index; Urgent carries the pages that a guest waits for; Disk
// carries the disk with its index.
const (
	Control Channel = 1 + iota
	Data
	Urgent
	Disk
)

// String is the channel for messages, also one that there is not.
func (c Channel) String() string {
	switch c {
	case Control:
		return "control channel"
	case Data:
		return "data channel"
	case Urgent:
		return "urgent channel"
	case Disk:
		return "disk channel"
	}
	return fmt.Sprintf("channel of kind %d", uint8(c))
}

// Preamble is what a connection begins with, before TLS. Nothing in it is secret, and
// nothing that it says is proven.
type Preamble struct {
	ID      ID      `json:"id"`
	Channel Channel `json:"channel"`
	Index   uint16  `json:"index"`
	// TLS says that TLS follows.
	TLS bool `json:"tls"`
	// Again says that the dialer has the token of the migration already.
	Again bool `json:"again"`
}

// The preamble and the answer to it begin with magic and the version, in every version.
//
//	 0  "godwit"                0  "godwit"
//	 6  version                 6  version
//	 8  ID                      8  0: go on, 1: refused
//	24  channel                10  length of the text
//	25  1: TLS, 2: again       12  CRC-32C of bytes 0 to 11 and the text
//	26  index                  16  text: why
//	28  CRC-32C of the above
const (
	magic        = "godwit"
	preambleSize = 32
	answerSize   = 16

	flagTLS, flagAgain = 1, 2
)

func (p Preamble) append(b []byte) []byte {
	start := len(b)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint16(b, Version)
	b = append(b, p.ID[:]...)
	flags := byte(0)
	if p.TLS {
		flags |= flagTLS
	}
	if p.Again {
		flags |= flagAgain
	}
	b = append(b, byte(p.Channel), flags)
	b = binary.LittleEndian.AppendUint16(b, p.Index)
	return binary.LittleEndian.AppendUint32(b, checksum(b[start:]))
}

// ErrStranger is wrapped by errors about a peer that is not godwit.
var ErrStranger = errors.New("the peer is not godwit")

// ReadPreamble reads the preamble of a connection that was accepted, until the deadline
// at the latest. Strangers fail at their first byte. After an error the caller closes the
// connection; a godwit that is refused has been told why.
func ReadPreamble(conn net.Conn, deadline time.Time) (Preamble, error) {
	p, refuse, err := readPreamble(conn, deadline)
	if err != nil {
		if refuse {
			Refuse(conn, err.Error())
		}
		return p, fmt.Errorf("connection from %v: %w", conn.RemoteAddr(), err)
	}
	return p, nil
}

func readPreamble(conn net.Conn, deadline time.Time) (p Preamble, refuse bool, err error) {
	if err := conn.SetReadDeadline(deadline); err != nil {
		return p, false, err
	}
	var b [preambleSize]byte
	if err := readMagic(conn, b[:8]); err != nil {
		return p, false, err
	}
	if v := binary.LittleEndian.Uint16(b[6:]); v != Version {
		return p, true, fmt.Errorf("the source speaks version %d of the migration protocol, the destination version %d: use the same godwit on both", v, Version)
	}
	if _, err := io.ReadFull(conn, b[8:]); err != nil {
		return p, false, fmt.Errorf("preamble of a migration: %w", err)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return p, false, err
	}
	p, err = parsePreamble(&b)
	return p, err != nil, err
}

// parsePreamble reads what follows the version.
func parsePreamble(b *[preambleSize]byte) (Preamble, error) {
	p := Preamble{
		ID:      ID(b[8:24]),
		Channel: Channel(b[24]),
		Index:   binary.LittleEndian.Uint16(b[26:]),
		TLS:     b[25]&flagTLS != 0,
		Again:   b[25]&flagAgain != 0,
	}
	if got, want := checksum(b[:28]), binary.LittleEndian.Uint32(b[28:]); got != want {
		return p, fmt.Errorf("preamble with checksum %#x, want %#x: %w", got, want, errCorrupt)
	}
	if p.Channel < Control || p.Channel > Disk || b[25]&^(flagTLS|flagAgain) != 0 {
		return p, fmt.Errorf("preamble of a %v with flags %#x, which version %d does not have", p.Channel, b[25], Version)
	}
	return p, nil
}

// readMagic fills b, which begins with magic, and gives up at the first byte that does not
// belong to it: who speaks another protocol may wait for an answer for ever.
func readMagic(r io.Reader, b []byte) error {
	for n := 0; n < len(b); {
		k, err := r.Read(b[n:])
		n += k
		if got := b[:min(n, len(magic))]; string(got) != magic[:len(got)] {
			return fmt.Errorf("it begins with %q: %w", got, ErrStranger)
		}
		if err != nil && n < len(b) {
			if errors.Is(err, io.EOF) && n > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// Refuse tells a dialer, whose preamble was read, why it cannot come in. It does not wait
// for a peer that does not listen; the caller closes the connection.
func Refuse(conn net.Conn, reason string) {
	if conn.SetWriteDeadline(time.Now().Add(time.Second)) == nil {
		_ = writeAnswer(conn, reason) // the caller has the reason too
	}
}

// writeAnswer tells the dialer to go on, or, with a reason, that it is refused.
func writeAnswer(w io.Writer, reason string) error {
	reason = reason[:min(len(reason), maxText)]
	b := append(make([]byte, 0, answerSize+maxText), magic...)
	b = binary.LittleEndian.AppendUint16(b, Version)
	status := uint16(0)
	if reason != "" {
		status = 1
	}
	b = binary.LittleEndian.AppendUint16(b, status)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(reason)))
	b = binary.LittleEndian.AppendUint32(b, checksum(append(b[:12:12], reason...)))
	_, err := w.Write(append(b, reason...))
	return err
}

// readAnswer returns nil when the dialer is to go on, and a PeerError when it is refused.
func readAnswer(r io.Reader) error {
	var b [answerSize]byte
	if err := readMagic(r, b[:]); err != nil {
		return err
	}
	status, n := binary.LittleEndian.Uint16(b[8:]), binary.LittleEndian.Uint16(b[10:])
	if n > maxText {
		return fmt.Errorf("an answer with a text of %d bytes: want at most %d", n, maxText)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return err
	}
	if got, want := checksum(append(b[:12:12], text...)), binary.LittleEndian.Uint32(b[12:]); got != want {
		return fmt.Errorf("an answer with checksum %#x, want %#x: %w", got, want, errCorrupt)
	}
	if status != 0 {
		return &PeerError{Text: printable(text)}
	}
	return nil
}
