package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// ErrClosed is wrapped by the errors of sessions whose connection ended before
// they did.
var ErrClosed = errors.New("agent connection closed")

// Client is the host's end of a connection. Its methods may be called from any
// goroutine.
type Client struct {
	conn *conn
	info Info
	// patience is how long the server may take to end a session.
	patience time.Duration

	mu       sync.Mutex
	sessions map[uint16]*session
	pings    map[uint16]chan struct{}
	last     uint16
	err      error // why the connection ended
	done     chan struct{}
}

// session is the client's end of a session.
type session struct {
	*channel
	done   chan struct{} // closed when result or err is there
	result result
	err    error
}

// Dial says hello over rw and returns when the server answers, which it does
// once the guest is up. The client owns rw from now on; it is closed when the
// context ends before the answer, on an error, and by Close.
func Dial(ctx context.Context, rw io.ReadWriteCloser) (*Client, error) {
	stop := context.AfterFunc(ctx, func() { rw.Close() })
	c, err := dial(rw)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		rw.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("connect to the guest's agent: %w", err)
	}
	return c, nil
}

func dial(rw io.ReadWriteCloser) (*Client, error) {
	c := &Client{
		conn:     &conn{rw: rw},
		patience: patience,
		sessions: make(map[uint16]*session),
		pings:    make(map[uint16]chan struct{}),
		done:     make(chan struct{}),
	}
	r := bufio.NewReaderSize(rw, 2*maxData)
	if err := shakeHands(rw, r); err != nil {
		return nil, err
	}
	buf := make([]byte, headerSize+maxPayload)
	f, err := readFrame(r, buf)
	if err != nil {
		return nil, err
	}
	if f.kind != kindHello {
		return nil, fmt.Errorf("%w: kind %d instead of a hello", ErrCorrupt, f.kind)
	}
	if err := json.Unmarshal(f.payload, &c.info); err != nil {
		return nil, fmt.Errorf("%w: hello: %w", ErrCorrupt, err)
	}
	if c.info.Protocol != protocol {
		return nil, fmt.Errorf("the guest's agent %s speaks protocol %d, this program %d: build the guest's image anew", c.info.Version, c.info.Protocol, protocol)
	}
	go c.read(r, buf)
	return c, nil
}

// patience is more than a server under emulation on a busy machine needs.
const patience = 20 * time.Second

// askAgain is how long a client waits for a beacon before it asks a server that
// may have sent one to somebody else.
const askAgain = time.Second

// shakeHands sends the client's preamble after each beacon, and when it has
// heard none for a while, until the server answers.
func shakeHands(w io.Writer, r io.ByteReader) error {
	hello := preamble{role: roleClient, nonce: newNonce()}
	beacon, answered := make(chan struct{}, 1), make(chan struct{})
	defer close(answered)
	var asking sync.Mutex // held while a hello is on its way
	done := false         // guarded by asking
	// The line may take the hello only when the guest listens, and what the
	// guest says first must be read meanwhile.
	go func() {
		again := time.NewTicker(askAgain)
		defer again.Stop()
		for {
			select {
			case <-beacon:
			case <-again.C:
			case <-answered:
				return
			}
			asking.Lock()
			if !done {
				// An error shows at the reader as well.
				w.Write(hello.bytes())
			}
			asking.Unlock()
		}
	}()
	for {
		p, err := readPreamble(r, string([]byte{roleServer, roleBeacon}))
		if err != nil {
			return err
		}
		switch {
		case p.role == roleServer && p.nonce == hello.nonce:
			// No hello is to be mixed with the frames that follow.
			asking.Lock()
			done = true
			asking.Unlock()
			return nil
		case p.role == roleBeacon:
			select {
			case beacon <- struct{}{}:
			default:
			}
		}
	}
}

// Info is what the server said of itself.
func (c *Client) Info() Info { return c.info }

// Done is closed when the connection has ended, for example because the guest
// powered off.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection. The server kills what the client's sessions run.
func (c *Client) Close() error {
	err := c.conn.rw.Close()
	c.fail(ErrClosed)
	return err
}

// read takes in frames until the connection ends.
func (c *Client) read(r io.Reader, buf []byte) {
	for {
		f, err := readFrame(r, buf)
		if err == nil {
			err = c.handle(f)
		}
		if err != nil {
			c.conn.rw.Close()
			c.fail(fmt.Errorf("%w: %w", ErrClosed, err))
			return
		}
	}
}

func (c *Client) handle(f frame) error {
	c.mu.Lock()
	s := c.sessions[f.session]
	pong := c.pings[f.session]
	c.mu.Unlock()
	switch f.kind {
	case kindPong:
		if pong != nil {
			c.forgetPing(f.session)
			close(pong)
		}
		return nil
	case kindExit:
		if s == nil {
			return nil
		}
		var res result
		err := json.Unmarshal(f.payload, &res)
		if err != nil {
			err = fmt.Errorf("%w: exit: %w", ErrCorrupt, err)
		}
		c.end(s, res, err)
		return err
	case kindEnding:
		return c.ended(f)
	}
	if s == nil {
		return nil // late, for a session that has ended
	}
	return s.handle(f)
}

// end ends a session.
func (c *Client) end(s *session, res result, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions[s.id] != s {
		return
	}
	delete(c.sessions, s.id)
	s.result, s.err = res, err
	s.close()
	close(s.done)
}

// fail ends all sessions and lets no new one start.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	open := make([]*session, 0, len(c.sessions))
	for _, s := range c.sessions {
		open = append(open, s)
	}
	c.mu.Unlock()
	for _, s := range open {
		c.end(s, result{}, err)
	}
	close(c.done)
}

// open starts a session.
func (c *Client) open(req request, receives ...stream) (*session, error) {
	payload, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	if len(payload) > maxPayload {
		return nil, fmt.Errorf("arguments and environment of %d bytes: the limit is %d", len(payload), maxPayload)
	}
	s, err := c.register(receives)
	if err != nil {
		return nil, err
	}
	if err := c.conn.send(frame{kind: kindOpen, session: s.id, payload: payload}); err != nil {
		err = fmt.Errorf("%w: %w", ErrClosed, err)
		c.end(s, result{}, err)
		return nil, err
	}
	return s, nil
}

func (c *Client) register(receives []stream) (*session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	if len(c.sessions) >= maxSessions {
		return nil, fmt.Errorf("%d sessions run on this connection already, the most there can be", maxSessions)
	}
	s := &session{channel: newChannel(c.conn, c.nextID(), receives...), done: make(chan struct{})}
	c.sessions[s.id] = s
	return s, nil
}

// nextID gives the numbers of sessions in turn, so that one is not used again
// while a frame of its last session may still be on its way. The caller holds
// mu.
func (c *Client) nextID() uint16 {
	for {
		c.last++
		if c.last != 0 && c.sessions[c.last] == nil && c.pings[c.last] == nil {
			return c.last
		}
	}
}

// Ping returns when the server has answered.
func (c *Client) Ping(ctx context.Context) error {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return c.err
	}
	id := c.nextID()
	pong := make(chan struct{})
	c.pings[id] = pong
	c.mu.Unlock()
	defer c.forgetPing(id)
	if err := c.conn.send(frame{kind: kindPing, session: id}); err != nil {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	select {
	case <-pong:
		return nil
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Client) forgetPing(id uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pings, id)
}

// Poweroff asks the guest to power off. The guest does not answer; the
// connection ends when the machine does.
func (c *Client) Poweroff() error { return c.shutdown(0) }

// Reboot asks the guest to reboot.
func (c *Client) Reboot() error { return c.shutdown(1) }

func (c *Client) shutdown(how byte) error {
	return c.conn.send(frame{kind: kindShutdown, payload: []byte{how}})
}
