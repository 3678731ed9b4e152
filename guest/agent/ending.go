package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Ending is how a machine ends. The zero value stands for a machine that does not.
type Ending uint8

// The ways to end.
const (
	Poweroff Ending = 1 + iota
	Reboot
	Halt
	endings // behind the last
)

// String says what the machine does.
func (e Ending) String() string {
	switch e {
	case Poweroff:
		return "powers off"
	case Reboot:
		return "reboots"
	case Halt:
		return "halts"
	}
	return "ends"
}

// EndingError is the error of sessions that the end of the machine cuts off. Their
// connection is gone, so that it is an ErrClosed as well.
type EndingError struct {
	// How the machine ends.
	How Ending
}

// Error says what the guest does.
func (e *EndingError) Error() string { return fmt.Sprintf("the guest %v", e.How) }

// Is makes it an ErrClosed.
func (e *EndingError) Is(target error) bool { return target == ErrClosed }

// BeginEnd says that the machine is about to end, before its processes are killed:
// clients take a command that is killed from now on for cut off. Commands have
// until patience is over to end by themselves, as one does that has asked for the
// machine's end.
func (s *Server) BeginEnd(how Ending, patience time.Duration) {
	s.mu.Lock()
	s.ending = how
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, c := range s.clients() {
		c.awaitCommands(ctx)
	}
}

// FinishEnd returns when all clients know how their commands have ended, or when
// patience is over. The processes have been killed before, and the connections
// break after it.
func (s *Server) FinishEnd(patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	clients := s.clients()
	for _, c := range clients {
		c.awaitCommands(ctx)
		// Not here: a client that does not read takes nothing.
		go c.send(frame{kind: kindEnding, payload: []byte{byte(s.endsBy())}})
	}
	for _, c := range clients {
		select {
		case <-c.told:
		case <-c.gone:
		case <-ctx.Done():
			return
		}
	}
}

// endsBy is how the machine ends, 0 if it does not.
func (s *Server) endsBy() Ending {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending
}

// clients are the connections that there are.
func (s *Server) clients() []*connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.connections))
}

// enter takes a connection into the books, and leave out of them.
func (s *Server) enter(c *connection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.connections == nil {
		s.connections = make(map[*connection]struct{})
	}
	s.connections[c] = struct{}{}
}

func (s *Server) leave(c *connection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.connections, c)
	close(c.gone)
}

// awaitCommands waits until the client has been sent how each of its commands has
// ended.
func (c *connection) awaitCommands(ctx context.Context) {
	c.mu.Lock()
	commands := slices.Collect(maps.Keys(c.commands))
	c.mu.Unlock()
	for _, s := range commands {
		select {
		case <-s.reported:
		case <-c.gone:
			return
		case <-ctx.Done():
			return
		}
	}
}

// ended is called when the server says that its machine ends: it has nothing more
// to say, and waits for the answer.
func (c *Client) ended(f frame) error {
	if len(f.payload) != 1 || f.payload[0] == 0 || f.payload[0] >= byte(endings) {
		return fmt.Errorf("%w: ending with % x", ErrCorrupt, f.payload)
	}
	how := Ending(f.payload[0])
	c.fail(&EndingError{how})
	// Not here, where the peer's bytes are read. An error means that the
	// server has gone already.
	go c.conn.send(frame{kind: kindEnding, payload: []byte{byte(how)}})
	return nil
}
