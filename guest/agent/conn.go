package agent

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// conn is the sending side of a connection, shared by its sessions.
type conn struct {
	rw io.ReadWriteCloser

	mu  sync.Mutex
	buf []byte
	err error // of the first write that failed
}

// send sends one frame. It may wait for the line, so it is never called by the
// goroutine that reads: two ends that both wait for the other to read would
// wait for ever.
func (c *conn) send(f frame) error {
	if len(f.payload) > maxPayload {
		return fmt.Errorf("agent protocol: message of %d bytes: the limit is %d", len(f.payload), maxPayload)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = appendFrame(c.buf[:0], f)
	return c.write(c.buf)
}

// write sends bytes as they are. The caller holds mu.
func (c *conn) write(b []byte) error {
	if c.err == nil {
		_, c.err = c.rw.Write(b)
	}
	return c.err
}

// sendJSON sends a frame with v as JSON.
func (c *conn) sendJSON(k kind, session uint16, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.send(frame{kind: k, session: session, payload: payload})
}

// channel is what both ends of a session have: the streams.
type channel struct {
	conn *conn
	id   uint16
	in   [streams]*inbox  // nil for the streams that this end sends
	out  [streams]*window // nil for the streams that this end receives
}

func newChannel(c *conn, id uint16, receives ...stream) *channel {
	ch := &channel{conn: c, id: id}
	for _, s := range receives {
		ch.in[s] = newInbox(func(n int) error {
			payload := binary.LittleEndian.AppendUint32(nil, uint32(n))
			return c.send(frame{kind: kindCredit, stream: s, session: id, payload: payload})
		})
	}
	for s := range streams {
		if ch.in[s] == nil {
			ch.out[s] = newWindow()
		}
	}
	return ch
}

// handle takes in a frame about a stream.
func (ch *channel) handle(f frame) error {
	in, out := ch.in[f.stream], ch.out[f.stream]
	switch {
	case f.kind == kindData && in != nil:
		return in.push(f.payload)
	case f.kind == kindEOF && in != nil:
		in.end()
		return nil
	case f.kind == kindCredit && out != nil && len(f.payload) == 4:
		return out.grant(binary.LittleEndian.Uint32(f.payload))
	}
	return fmt.Errorf("%w: kind %d on stream %d with %d bytes", ErrCorrupt, f.kind, f.stream, len(f.payload))
}

// write sends p on a stream, as the peer gives credit.
func (ch *channel) write(s stream, p []byte) error {
	for len(p) > 0 {
		n := ch.out[s].take(min(len(p), maxData))
		if n == 0 {
			return io.ErrClosedPipe
		}
		if err := ch.conn.send(frame{kind: kindData, stream: s, session: ch.id, payload: p[:n]}); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// finish says that a stream has ended.
func (ch *channel) finish(s stream) error {
	if ch.out[s].isClosed() {
		return nil
	}
	return ch.conn.send(frame{kind: kindEOF, stream: s, session: ch.id})
}

// close ends all streams: readers get what is there, and then EOF.
func (ch *channel) close() {
	for s := range streams {
		if ch.in[s] != nil {
			ch.in[s].end()
		}
		if ch.out[s] != nil {
			ch.out[s].close()
		}
	}
}
