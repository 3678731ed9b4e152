package live

import (
	"context"
	"crypto/tls"
	"time"

	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// link is a source's way to its destination, which is made again when it is lost.
type link struct {
	driver *driver
	addr   string
	id     stream.ID
	tls    *tls.Config
	// hear takes the Times.
	hear  func([]byte) error
	trace Trace
}

// keep listens to the destination, on a connection that is attached already unless it is
// nil, and dials it again when the link is lost, until ctx ends.
func (l *link) keep(ctx context.Context, c *control) {
	defer context.AfterFunc(ctx, func() { l.driver.attach(nil) })()
	for {
		if c != nil {
			err := l.driver.listen(c, frameTimes, l.hear)
			if !l.driver.detach(c) || ctx.Err() != nil {
				return
			}
			l.driver.post(handover.Event{Kind: handover.LinkLost, Reason: "the connection to " + l.addr + " was lost: " + err.Error()})
		}
		if c = l.redial(ctx); c == nil {
			return
		}
		l.driver.attach(c)
		if ctx.Err() != nil {
			// The end may have come before there was this one to close.
			l.driver.attach(nil)
			return
		}
		l.driver.post(handover.Event{Kind: handover.LinkBack})
	}
}

// redial dials the destination until it answers.
func (l *link) redial(ctx context.Context) *control {
	for pause := redialFirst; ; pause = min(2*pause, redialMost) {
		// First: a destination may take each connection only to end it.
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		// A dialer without a token: the destination may be another process by now.
		d := stream.Dialer{Addr: l.addr, ID: l.id, TLS: l.tls}
		if conn, err := d.Control(ctx); err == nil {
			return newControl(conn, l.trace)
		}
	}
}
