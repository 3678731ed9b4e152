package live

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/migrate/handover"
)

// Version is that of the control messages. A destination refuses another one.
const Version = 1

// kind is what a frame of the control connection is.
type kind uint8

// The kinds of frame: a byte with the kind, four with the length, that many bytes, and
// four with the CRC-32C of all that (little endian). TCP's checksum lets one error in
// 65,536 pass, and STARTED read as REFUSED has the guest run twice.
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
	frameOffer: 16 << 20, frameAnswer: 64 << 10, frameState: 64 << 20, frameHandover: handover.MaxMessage, frameTimes: 4 << 10,
}

const (
	frameHeader = 1 + 4
	frameSum    = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var frameNames = [...]string{frameOffer: "offer", frameAnswer: "answer", frameState: "state", frameHandover: "handover", frameTimes: "times"}

// name is what a frame says, for Trace.
func (k kind) name(body []byte) string {
	if k == frameHandover && len(body) > 0 {
		return handover.Verb(body[0]).String()
	}
	return frameNames[k]
}

// sendTimeout bounds how long a peer may take to read a frame.
const sendTimeout = 20 * time.Second

// control is a connection on which the two sides talk. One goroutine receives, any
// may send.
type control struct {
	conn  net.Conn
	r     *bufio.Reader
	trace Trace
	mu    sync.Mutex // over sending
}

func newControl(conn net.Conn, t Trace) *control {
	return &control{conn: conn, r: bufio.NewReader(conn), trace: t}
}

func (c *control) send(k kind, body []byte) error { return c.sendBy(k, body, c.conn.Write) }

// sendBy is send with another way to write the frame.
func (c *control) sendBy(k kind, body []byte, write func([]byte) (int, error)) error {
	if len(body) > limits[k] {
		return fmt.Errorf("control message of %d bytes: want at most %d", len(body), limits[k])
	}
	frame := make([]byte, frameHeader, frameHeader+len(body)+frameSum)
	frame[0] = byte(k)
	binary.LittleEndian.PutUint32(frame[1:], uint32(len(body)))
	frame = append(frame, body...)
	frame = binary.LittleEndian.AppendUint32(frame, crc32.Checksum(frame, castagnoli))
	return c.trace.around(OpSend, k.name(body), func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if err := c.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
			return err
		}
		_, err := write(frame)
		return err
	})
}

func (c *control) sendJSON(k kind, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return c.send(k, text)
}

// receive waits for a frame of one of some kinds, for as long as the connection has no
// read deadline.
func (c *control) receive(kinds ...kind) (kind, []byte, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(c.r, header[:]); err != nil {
		return 0, nil, err
	}
	k, n := kind(header[0]), binary.LittleEndian.Uint32(header[1:])
	if !slices.Contains(kinds, k) {
		return 0, nil, fmt.Errorf("control message of kind %d, want one of %v: is the peer another version?", k, kinds)
	}
	if uint64(n) > uint64(limits[k]) {
		return 0, nil, fmt.Errorf("control message of %d bytes: want at most %d", n, limits[k])
	}
	// The buffer grows with what comes: a length alone costs nothing.
	var body bytes.Buffer
	if _, err := io.CopyN(&body, c.r, int64(n)); err != nil {
		return 0, nil, fmt.Errorf("control message of %d bytes ends after %d: %w", n, body.Len(), err)
	}
	var sum [frameSum]byte
	if _, err := io.ReadFull(c.r, sum[:]); err != nil {
		return 0, nil, fmt.Errorf("control message ends before its checksum: %w", err)
	}
	want := crc32.Update(crc32.Checksum(header[:], castagnoli), castagnoli, body.Bytes())
	if got := binary.LittleEndian.Uint32(sum[:]); got != want {
		return 0, nil, fmt.Errorf("control message with checksum %#x, want %#x: the network has changed it", got, want)
	}
	return k, body.Bytes(), nil
}

// expect receives a frame of a kind that comes within a time.
func (c *control) expect(want kind, within time.Duration) ([]byte, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return nil, err
	}
	_, body, err := c.receive(want)
	if err != nil {
		return nil, err
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
	// Time is what the source's clock showed when it made the offer: hosts' clocks differ.
	Time time.Time `json:"time"`
	// Connections is how many data connections there will be.
	Connections int `json:"connections"`
	// PostCopy says that the guest may run there before all of its memory has come.
	PostCopy bool `json:"post_copy,omitempty"`
	// Disks are those that come with the guest.
	Disks []OfferedDisk `json:"disks,omitempty"`
	// Files come with the offer where source and destination are processes of one host;
	// a destination that did not get all of them finds none here.
	Files []OfferedFile `json:"files,omitempty"`
	// SharesMemory says that the guest's memory is among them: it is not copied.
	SharesMemory bool `json:"shares_memory,omitempty"`
	// Peer is the source's process if that is one of this host, and of this user or the
	// administrator; else 0.
	Peer int `json:"-"`
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
	return errors.Join(checkFiles(o.Files), checkDisks(o.Disks))
}

// Answer is what a destination says to an Offer.
type Answer struct {
	// Reasons why it does not take the guest; none means that it does.
	Reasons []string `json:"reasons,omitempty"`
	// Host is the destination's name, for people.
	Host string `json:"host,omitempty"`
	// Shared says that the guest's memory came with the offer.
	Shared bool `json:"shared,omitempty"`
	// Leftover says of each of the offer's disks whether parts of it may be there, from
	// a migration that failed.
	Leftover []bool `json:"leftover,omitempty"`
}

// Times are what the destination's part of the downtime was spent with.
type Times struct {
	Load  time.Duration `json:"load_ns"`
	Locks time.Duration `json:"locks_ns"`
	// Journal is the durable note that the guest is the destination's.
	Journal time.Duration `json:"journal_ns"`
	Run     time.Duration `json:"run_ns"`
}
