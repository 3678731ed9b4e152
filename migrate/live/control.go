package live

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/migrate/handover"
)

// Version is that of the control messages. A destination refuses another one.
const Version = 1

// kind is what a frame of the control connection is.
type kind uint8

// The kinds of frame: a byte with the kind, four with the length (little endian), and
// that many bytes.
const (
	// frameOffer, frameAnswer and frameTimes are JSON.
	frameOffer kind = iota + 1
	frameAnswer
	// frameState is the state of the paused guest.
	frameState
	// frameHandover is a handover.Message.
	frameHandover
	// frameTimes is a Times, before the destination's first STARTED.
	frameTimes
)

// limits are the lengths in bytes of the longest frames.
var limits = [...]int{
	frameOffer: 1 << 20, frameAnswer: 64 << 10, frameState: 64 << 20, frameHandover: handover.MaxMessage, frameTimes: 4 << 10,
}

const frameHeader = 1 + 4

// sendTimeout bounds how long a peer may take to read a frame.
const sendTimeout = 20 * time.Second

// control is a connection on which the two sides talk. One goroutine receives, any
// may send.
type control struct {
	conn net.Conn
	r    *bufio.Reader
	mu   sync.Mutex // over sending
}

func newControl(conn net.Conn) *control { return &control{conn: conn, r: bufio.NewReader(conn)} }

func (c *control) send(k kind, body []byte) error {
	if len(body) > limits[k] {
		return fmt.Errorf("control message of %d bytes: want at most %d", len(body), limits[k])
	}
	frame := make([]byte, frameHeader, frameHeader+len(body))
	frame[0] = byte(k)
	binary.LittleEndian.PutUint32(frame[1:], uint32(len(body)))
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	_, err := c.conn.Write(append(frame, body...))
	return err
}

func (c *control) sendJSON(k kind, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return c.send(k, text)
}

// receive waits for a frame, for as long as the connection has no read deadline.
func (c *control) receive() (kind, []byte, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(c.r, header[:]); err != nil {
		return 0, nil, err
	}
	k, n := kind(header[0]), binary.LittleEndian.Uint32(header[1:])
	if k < frameOffer || int(k) >= len(limits) {
		return 0, nil, fmt.Errorf("control message of kind %d: is the peer another version?", k)
	}
	if uint64(n) > uint64(limits[k]) {
		return 0, nil, fmt.Errorf("control message of %d bytes: want at most %d", n, limits[k])
	}
	// The buffer grows with what comes: a length alone costs nothing.
	var body bytes.Buffer
	if _, err := io.CopyN(&body, c.r, int64(n)); err != nil {
		return 0, nil, fmt.Errorf("control message of %d bytes ends after %d: %w", n, body.Len(), err)
	}
	return k, body.Bytes(), nil
}

// expect receives a frame of a kind that comes within a time.
func (c *control) expect(want kind, within time.Duration) ([]byte, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return nil, err
	}
	k, body, err := c.receive()
	if err != nil {
		return nil, err
	}
	if k != want {
		return nil, fmt.Errorf("control message of kind %d, want %d: is the peer another version?", k, want)
	}
	return body, c.conn.SetReadDeadline(time.Time{})
}

// Offer is what a source says of the guest that it wants to hand over.
type Offer struct {
	Version int         `json:"version"`
	ID      handover.ID `json:"id"`
	Epoch   uint64      `json:"epoch"`
	// Name of the guest there, and Godwit the version of the program.
	Name   string `json:"name"`
	Godwit string `json:"godwit"`
	// Connections is how many data connections there will be.
	Connections int `json:"connections"`
	// Guest describes the guest to the other side's Incoming.
	Guest json.RawMessage `json:"guest"`
}

// MaxConnections is the largest number of data connections.
const MaxConnections = 32

func (o *Offer) check() error {
	switch {
	case o.Version != Version:
		return fmt.Errorf("the source (godwit %s) speaks version %d of the migration protocol, this host version %d: use the same godwit on both", o.Godwit, o.Version, Version)
	case o.Connections < 1 || o.Connections > MaxConnections:
		return fmt.Errorf("%d connections for memory: want 1 to %d", o.Connections, MaxConnections)
	case o.Epoch == 0 || o.Epoch > 1<<62:
		return fmt.Errorf("epoch %d: want 1 to 2^62", o.Epoch)
	}
	return nil
}

// Answer is what a destination says to an Offer.
type Answer struct {
	// Reasons why it does not take the guest; none means that it does.
	Reasons []string `json:"reasons,omitempty"`
	// Host is the destination's name, for people.
	Host string `json:"host,omitempty"`
}

// Times are what the destination's part of the downtime was spent with.
type Times struct {
	Load  time.Duration `json:"load_ns"`
	Locks time.Duration `json:"locks_ns"`
	// Journal is the durable note that the guest is the destination's.
	Journal time.Duration `json:"journal_ns"`
	Run     time.Duration `json:"run_ns"`
}
