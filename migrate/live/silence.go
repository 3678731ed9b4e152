package live

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/godwit-vmm/godwit/migrate/handover"
)

// silence notices that a source does not send anything any more: nothing else would, for
// its connections may be open still. A source that moves a guest always sends something
// until the guest is complete; after that the state machine has timers.
type silence struct {
	limit time.Duration
	// last is when something came last, since began.
	began time.Time
	last  atomic.Int64
	// complete is closed when the guest is.
	complete chan struct{}
}

// begin comes before any other goroutine has a connection.
func (s *silence) begin(w Waits) {
	s.last.Store(0)
	s.limit, s.began, s.complete = w.Silence, time.Now(), make(chan struct{})
	if s.limit == 0 {
		s.limit = DefaultWaits.Silence
	}
}

// end is called once.
func (s *silence) end() { close(s.complete) }

// watch tells the state machine, once, that nothing has come for too long, until ctx ends or
// the guest is complete.
func (s *silence) watch(ctx context.Context, tell func(handover.Event)) {
	for {
		left := s.limit - (time.Since(s.began) - time.Duration(s.last.Load()))
		if left <= 0 {
			tell(handover.Event{Kind: handover.Failed, Reason: fmt.Sprintf("the source has sent nothing for %v", s.limit)})
			return
		}
		select {
		case <-time.After(left):
		case <-s.complete:
			return
		case <-ctx.Done():
			return
		}
	}
}

// heard is a connection of which it is noted when something comes.
type heard struct {
	net.Conn
	silence *silence
}

// Read is that of the connection.
func (h *heard) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	if n > 0 {
		h.silence.last.Store(int64(time.Since(h.silence.began)))
	}
	return n, err
}
