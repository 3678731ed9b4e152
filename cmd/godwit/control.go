package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/godwit-vmm/godwit/internal/api"
	"github.com/godwit-vmm/godwit/internal/events"
	"github.com/godwit-vmm/godwit/internal/ring"
	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/godwit-vmm/godwit/internal/version"
	"github.com/godwit-vmm/godwit/internal/vmm"
)

// drainTimeout bounds how long the end of a guest waits for those who read its
// console.
const drainTimeout = time.Second

// host is what this process has around its guest, for others: the end of its console,
// its events, and the control socket.
type host struct {
	// vm is set before the guest starts.
	vm      *vmm.VM
	console *ring.Ring
	events  atomic.Pointer[events.Bus]
	// i is nil until serve.
	i *instance

	watching sync.WaitGroup
	// served gets what has become of the service; nil without one.
	served chan error

	mu sync.Mutex
	// listener is nil until the socket is there, server until somebody has
	// connected.
	listener net.Listener
	server   *api.Server
	closed   bool
}

// newHost has the console of the guest that is run go to out, and to those who attach.
func newHost(run *vmm.Options, out io.Writer) *host {
	h := &host{console: ring.New(ring.DefaultSize)}
	run.Console = &tee{kept: h.console, out: out}
	run.Event = h.event
	return h
}

// tee keeps what the guest writes to its console whether there is still somebody to
// show it to or not.
type tee struct {
	kept   *ring.Ring
	out    io.Writer
	failed atomic.Bool
}

// Write never fails.
func (t *tee) Write(p []byte) (int, error) {
	n, err := t.kept.Write(p)
	if err == nil && !t.failed.Load() {
		if _, err := t.out.Write(p); err != nil {
			t.failed.Store(true)
		}
	}
	return n, err
}

// event is vmm.Options.Event.
func (h *host) event(e vmm.Event) {
	if e.Kind == vmm.EventTrouble {
		fmt.Fprintf(os.Stderr, "godwit: %v\r\n", e.Err)
	}
	if b := h.events.Load(); b != nil {
		b.Publish(publicEvent(e))
	}
	h.mu.Lock()
	server := h.server
	h.mu.Unlock()
	if server != nil {
		server.Event(e)
	}
}

// publicEvent is an event as others see it.
func publicEvent(e vmm.Event) events.Event {
	p := events.Event{Type: events.Type(e.Kind), Message: e.Path}
	switch {
	case e.Err != nil:
		p.Message = e.Err.Error()
	case e.Kind == vmm.EventEnded:
		p.Message = "the guest " + e.Outcome.String()
	}
	return p
}

// serve answers on the guest's control socket, if it has one, until close. It returns at
// once: a start does not wait for the socket.
func (h *host) serve(i *instance) {
	if i.dir == nil {
		h.serveOn(i, nil)
		return
	}
	h.serveOn(i, func() (net.Listener, error) { return net.Listen("unix", i.dir.Path(rundir.APIFile)) })
}

// serveOn is serve with a socket that listen makes.
func (h *host) serveOn(i *instance, listen func() (net.Listener, error)) {
	h.i = i
	h.events.Store(events.New(i.name))
	if listen == nil {
		return
	}
	h.served = make(chan error, 1)
	go func() { h.served <- h.listen(listen) }()
}

// listen makes the server when somebody connects: a guest that nobody controls does
// not pay for it.
func (h *host) listen(listen func() (net.Listener, error)) error {
	l, err := listen()
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if !h.set(func() { h.listener = l }) {
		return l.Close()
	}
	first, err := l.Accept()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	server, ok := h.api()
	if !ok {
		return first.Close()
	}
	return server.Serve(&acceptedListener{Listener: l, first: first})
}

// api is the server, which is made if need be; false once the host has been closed.
func (h *host) api() (*api.Server, bool) {
	ok := h.set(func() {
		if h.server != nil {
			return
		}
		f := newFigures(h)
		h.server = api.New(h.vm, api.Options{
			Version: version.String(),
			Console: &ring.Handler{Ring: h.console, Send: h.vm.Input},
			Events:  h.events.Load(),
			Metrics: f, MetricsFile: f.writeTo, FlushMetrics: f.flush,
		})
	})
	return h.server, ok
}

// set changes the fields, unless the host has been closed.
func (h *host) set(change func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		change()
	}
	return !h.closed
}

// watch keeps others informed of whether the guest is up. up is called the first time;
// its error ends the guest.
func (h *host) watch(up func() error) {
	h.watching.Go(func() {
		ctx, stop := context.WithCancel(context.Background())
		go func() {
			<-h.vm.Done()
			stop()
		}()
		if err := h.i.watch(ctx, up); err != nil {
			h.vm.Kill(err)
		}
	})
}

// close ends the guest if it has not ended, and then all the rest. It says what went
// wrong with the service.
func (h *host) close() error {
	h.vm.Kill(nil)
	<-h.vm.Done()
	h.watching.Wait()
	if b := h.events.Load(); b != nil {
		_ = b.Close()
	}
	_ = h.console.Close()
	drain, stop := context.WithTimeout(context.Background(), drainTimeout)
	defer stop()
	// Who does not read misses the end.
	_ = h.console.Drain(drain)
	if h.served == nil {
		return nil
	}
	h.mu.Lock()
	h.closed = true
	l, server := h.listener, h.server
	h.mu.Unlock()
	var errs []error
	if server != nil {
		errs = append(errs, server.Close())
	}
	// The server closes it as well, if it has come to use it.
	if l != nil {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, <-h.served)...)
}

// acceptedListener is a listener of which one connection was accepted already.
type acceptedListener struct {
	net.Listener
	first net.Conn
}

// Accept returns the first connection once, and then what comes. It is called by
// one goroutine.
func (l *acceptedListener) Accept() (net.Conn, error) {
	if c := l.first; c != nil {
		l.first = nil
		return c, nil
	}
	return l.Listener.Accept()
}
