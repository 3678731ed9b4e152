package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// maxSessions bounds how many sessions run at once on one connection.
const maxSessions = 256

// Server is the guest's end. One Server may serve many connections.
type Server struct {
	// Version is told to clients.
	Version string
	// Reaper starts the commands.
	Reaper *Reaper
	// Shutdown powers the machine off or reboots it.
	Shutdown func(reboot bool) error
	// SetTime sets the clock; nil if that cannot be.
	SetTime func(time.Time) error
	// Reseed gives the random number generator a seed; nil if that cannot be.
	Reseed func(seed []byte) error
	// SetMAC gives the network interface with the address old another one; nil
	// if that cannot be.
	SetMAC func(old, address net.HardwareAddr) error

	mu          sync.Mutex
	connections map[*connection]struct{}
	ending      Ending
}

// connection is one client of a server.
type connection struct {
	*Server
	*conn
	work sync.WaitGroup // everything that was started for this client
	gone chan struct{}  // closed at the end of the connection
	told chan struct{}  // closed when the client knows that the machine ends
	tell sync.Once      // closes told

	mu       sync.Mutex
	sessions map[uint16]*serverSession
	commands map[*serverSession]struct{} // until the client was sent their end
}

// serverSession is the server's end of a session.
type serverSession struct {
	*channel
	reported chan struct{} // closed when the client was sent the session's end

	mu        sync.Mutex
	abandoned bool
	child     *Child
	terminal  *os.File
}

// Serve talks to clients, one after the other, until rw ends or breaks; it then
// closes rw. What a client left running is killed when it goes or another one
// comes. The end of rw is no error; after any other the caller may open the
// line again.
func (s *Server) Serve(rw io.ReadWriteCloser) error {
	err := s.serve(rw)
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, os.ErrClosed} {
		if errors.Is(err, end) {
			return nil
		}
	}
	return fmt.Errorf("agent: %w", err)
}

func (s *Server) serve(rw io.ReadWriteCloser) error {
	defer rw.Close()
	if _, err := rw.Write(beacon().bytes()); err != nil {
		return err
	}
	r := bufio.NewReaderSize(rw, 2*maxData)
	client, err := readPreamble(r, string(roleClient))
	buf := make([]byte, headerSize+maxPayload)
	for err == nil {
		err = s.serveClient(rw, r, buf, client.nonce)
		var p *preambleError
		if errors.As(err, &p) && p.role == roleClient {
			client, err = p.preamble, nil
		}
	}
	return err
}

// serveClient serves one client until the line breaks, which closes it, or
// another client says hello, which is a *preambleError.
func (s *Server) serveClient(rw io.ReadWriteCloser, r io.Reader, buf []byte, client nonce) error {
	c := &connection{
		Server:   s,
		conn:     &conn{rw: rw},
		gone:     make(chan struct{}),
		told:     make(chan struct{}),
		sessions: make(map[uint16]*serverSession),
		commands: make(map[*serverSession]struct{}),
	}
	s.enter(c)
	defer c.end()
	pings := make(chan uint16, 16)
	defer close(pings)
	c.work.Go(func() { c.greet(client, pings) })
	for {
		f, err := readFrame(r, buf)
		if err == nil {
			err = c.handle(f, pings)
		}
		var p *preambleError
		switch another := errors.As(err, &p) && p.role == roleClient; {
		case err == nil:
		case another && p.nonce == client:
			// It asked twice, because of the beacon.
		case another:
			return err
		default:
			// Whoever waits to write must not wait any more.
			rw.Close()
			return err
		}
	}
}

// greet answers the client's hello, and then its pings.
func (c *connection) greet(client nonce, pings <-chan uint16) {
	c.conn.mu.Lock()
	c.conn.write(preamble{role: roleServer, nonce: client}.bytes())
	c.conn.mu.Unlock()
	// An error shows at the reader as well.
	c.sendJSON(kindHello, 0, c.describe())
	for id := range pings {
		c.send(frame{kind: kindPong, session: id})
	}
}

func (c *connection) describe() Info {
	i := Info{Protocol: protocol, Version: c.Version}
	// What cannot be told stays empty.
	i.Hostname, _ = os.Hostname()
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		i.Kernel = string(release[:max(0, len(release)-1)])
	}
	return i
}

// handle takes in a frame. It must not wait: everything behind the frame would
// wait as well.
func (c *connection) handle(f frame, pings chan<- uint16) error {
	switch f.kind {
	case kindOpen:
		return c.open(f)
	case kindPing:
		select {
		case pings <- f.session:
		default: // a flood: the client waits for what it has asked before
		}
		return nil
	case kindShutdown:
		if len(f.payload) != 1 || f.payload[0] > 1 {
			return fmt.Errorf("%w: shutdown with % x", ErrCorrupt, f.payload)
		}
		reboot := f.payload[0] == 1
		// Not in the work of this connection, which Serve waits for.
		go c.Shutdown(reboot)
		return nil
	case kindEnding:
		c.tell.Do(func() { close(c.told) })
		return nil
	}
	c.mu.Lock()
	s := c.sessions[f.session]
	c.mu.Unlock()
	if s == nil {
		return nil // late, for a session that has ended
	}
	switch f.kind {
	case kindSignal:
		if len(f.payload) != 1 {
			return fmt.Errorf("%w: signal with %d bytes", ErrCorrupt, len(f.payload))
		}
		s.signal(syscall.Signal(f.payload[0]))
		return nil
	case kindResize:
		return s.resize(f.payload)
	case kindAbandon:
		s.abandon()
		return nil
	}
	return s.channel.handle(f)
}

// open starts the session that a client asks for.
func (c *connection) open(f frame) error {
	var req request
	if err := json.Unmarshal(f.payload, &req); err != nil {
		return fmt.Errorf("%w: open: %w", ErrCorrupt, err)
	}
	s := &serverSession{channel: newChannel(c.conn, f.session, stdin), reported: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions[f.session] != nil || len(c.sessions) >= maxSessions {
		return fmt.Errorf("%w: session %d opened on top of %d", ErrCorrupt, f.session, len(c.sessions))
	}
	c.sessions[f.session] = s
	if req.Op == opExec {
		c.commands[s] = struct{}{}
	}
	c.work.Go(func() {
		res := c.run(s, req)
		// Gone from the table before the client knows: it may use the
		// number again at once.
		c.mu.Lock()
		delete(c.sessions, s.id)
		c.mu.Unlock()
		s.close()
		c.sendJSON(kindExit, s.id, res)
		close(s.reported)
		c.mu.Lock()
		delete(c.commands, s)
		c.mu.Unlock()
	})
	return nil
}

func (c *connection) run(s *serverSession, req request) result {
	var err error
	var res result
	switch req.Op {
	case opExec:
		if res.Exit, err = c.exec(s, req); res.Signal != 0 {
			res.Ending = c.endsBy()
		}
	case opPut:
		err = s.put(req)
	case opGet:
		res.Mode, err = s.get(req)
	case opPutTree:
		res.Copied, err = s.putTree(req)
	case opGetTree:
		res.Copied, err = s.getTree(req)
	case opSetTime:
		err = c.setTime(time.Unix(0, req.Time))
	case opSetMAC:
		err = c.setMAC(req.Args)
	case opReseed:
		err = c.reseed(req.Seed)
	default:
		err = fmt.Errorf("the agent cannot %q", req.Op)
	}
	if err != nil {
		res.Error = err.Error()
	}
	return res
}

func (c *connection) setTime(t time.Time) error {
	if c.SetTime == nil {
		return errors.New("this agent does not set the clock")
	}
	return c.SetTime(t)
}

// end kills what runs for the client and waits for it.
func (c *connection) end() {
	c.leave(c)
	c.mu.Lock()
	for _, s := range c.sessions {
		s.abandon()
	}
	c.mu.Unlock()
	c.work.Wait()
}

// abandon ends a session whose client has lost interest.
func (s *serverSession) abandon() {
	s.mu.Lock()
	s.abandoned = true
	if s.child != nil {
		s.child.Signal(syscall.SIGKILL)
	}
	s.mu.Unlock()
	s.close()
	s.in[stdin].discard()
}
