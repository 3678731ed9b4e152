package live

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// offerTime is how long a source may take to make its offer.
const offerTime = 20 * time.Second

const (
	// maxPending bounds how many connections at once have not shown yet what they want,
	// and maxOpen how many there are.
	maxPending = 64
	maxOpen    = 1024
	// acceptPause is how long Serve waits when the host has no descriptors left.
	acceptPause = 100 * time.Millisecond
)

// Server takes guests that come, and answers for those that came.
type Server struct {
	// Journal is this host's, Host its name for people.
	Journal *handover.Journal
	Host    string
	// TLS is nil for plain connections.
	TLS *tls.Config
	// New makes the Incoming for a guest, or says why there is no place for it.
	New func(Offer) (Incoming, error)
	// Ended, if set, is told of each migration that is over for this side, with the
	// state that it came to; and of those that never began, with an error.
	Ended func(offer Offer, state handover.DestinationState, err error)
	Waits Waits
	// Trace is for tests.
	Trace Trace

	mu       sync.Mutex
	sessions map[handover.ID]*destination
	work     sync.WaitGroup
}

// Serve takes connections from l until ctx ends, which closes l and breaks off what is
// under way: a guest that has not been taken over is refused.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	defer s.work.Wait()
	pending, open := make(chan struct{}, maxPending), make(chan struct{}, maxOpen)
	for {
		for _, places := range []chan struct{}{open, pending} {
			select {
			case places <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
		}
		conn, err := accept(ctx, l)
		if err != nil || conn == nil {
			return err
		}
		s.work.Go(func() {
			defer func() { <-open }()
			in := sync.OnceFunc(func() { <-pending })
			defer in()
			p, err := stream.ReadPreamble(conn, time.Now().Add(stream.SetUpTime))
			if err != nil {
				_ = conn.Close()
				return
			}
			s.take(ctx, conn, p, in)
		})
	}
}

// accept accepts a connection, or nil when ctx has ended. That the host is short of
// something ends no receiver: strangers could bring that about.
func accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil && conn != nil:
			return nil, conn.Close()
		case ctx.Err() != nil:
			return nil, nil
		case err == nil:
			return conn, nil
		case !short(err):
			return nil, fmt.Errorf("accept a migration: %w", err)
		}
		select {
		case <-time.After(acceptPause):
		case <-ctx.Done():
		}
	}
}

// short says that an error of accept(2) is one that passes.
func short(err error) bool {
	for _, passing := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED, unix.EPROTO} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

// take takes a connection whose preamble was read, and returns when it is not needed any
// more. It calls in when the connection has shown what it is for.
func (s *Server) take(ctx context.Context, conn net.Conn, p stream.Preamble, in func()) {
	id := handover.ID(p.ID)
	d := s.session(id)
	switch {
	case d == nil && p.Channel != stream.Control:
		stream.Refuse(conn, fmt.Sprintf("migration %s is not known here: start it again from the source", id))
		_ = conn.Close()
	case p.Channel == stream.Data, p.Channel == stream.Disk:
		d.serve(ctx, conn, p, in)
	case p.Channel == stream.Urgent && d.paging != nil:
		ready, err := d.acceptor.Accept(ctx, conn, p)
		in()
		if err == nil {
			d.paging.serve(ready, p.Index)
		}
	case p.Channel == stream.Control:
		// Each has a token of its own: the source may have been started again.
		a := &stream.Acceptor{ID: p.ID, TLS: s.TLS}
		if d == nil {
			d = &destination{server: s, acceptor: stream.Acceptor{ID: p.ID, TLS: s.TLS}}
			d.changed.L = &d.mu
			a = &d.acceptor
		}
		ready, err := a.Accept(ctx, conn, p)
		if err != nil {
			return
		}
		if a != &d.acceptor {
			in()
			if shown(ready) != d.source {
				_ = ready.Close()
				return
			}
			d.again(ready)
			return
		}
		d.source = shown(ready)
		s.begin(ctx, d, id, ready, in)
	default:
		stream.Refuse(conn, "this destination has no use for such a connection")
		_ = conn.Close()
	}
}

func (s *Server) session(id handover.ID) *destination {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[id]
}

// ready has connections find a migration.
func (s *Server) ready(d *destination) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions == nil {
		s.sessions = make(map[handover.ID]*destination)
	}
	s.sessions[d.offer.ID] = d
}

func (s *Server) forget(d *destination) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[d.offer.ID] == d {
		delete(s.sessions, d.offer.ID)
	}
}

// begin finds out what a source wants that has no migration here, and does it.
func (s *Server) begin(ctx context.Context, d *destination, id handover.ID, conn net.Conn, in func()) {
	files := takeFiles(conn)
	defer files.close()
	c := newControl(&heard{files.conn(), &d.silence}, s.Trace)
	defer c.conn.Close()
	if err := c.conn.SetReadDeadline(time.Now().Add(offerTime)); err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { _ = c.conn.Close() })()
	k, body, err := c.receive(frameOffer, frameHandover)
	in()
	if err != nil {
		return
	}
	switch k {
	case frameOffer:
		err = s.receive(ctx, d, c, body, files)
		if s.Ended != nil {
			s.Ended(d.offer, d.machine.State(), err)
		}
	case frameHandover:
		if m, err := handover.DecodeMessage(body); err == nil && m.ID == id {
			s.answer(ctx, c, m)
		}
	}
}

// receive takes a guest that is offered.
func (s *Server) receive(ctx context.Context, d *destination, c *control, body []byte, files *fileConn) error {
	err := json.Unmarshal(body, &d.offer)
	if err == nil {
		err = d.offer.check()
	}
	if err == nil && stream.ID(d.offer.ID) != d.acceptor.ID {
		err = errors.New("the offer is about another migration than its connection")
	}
	if err == nil {
		files.give(&d.offer)
		d.in, err = s.New(d.offer)
	}
	if err == nil {
		err = c.conn.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return errors.Join(err, c.sendJSON(frameAnswer, Answer{Host: s.Host, Reasons: reasons(err)}))
	}
	defer s.forget(d)
	err = d.run(ctx, c)
	s.tidy(d.machine.State())
	return err
}
