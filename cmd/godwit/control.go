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
// console and its events.
const drainTimeout = time.Second

// host is what this process has around its guest, for others: the end of its console,
// its events, and the control socket.
type host struct {
	// vm is set before the guest starts.
	vm      *vmm.VM
	console *ring.Ring
	// i is nil until serve.
	i *instance

	watching sync.WaitGroup
	// served gets what has become of the service; nil without one.
	served chan error
	// listening is closed when the socket is there, or cannot be; nil without one.
	listening chan struct{}

	mu sync.Mutex
	// events is nil until serve; early are those of before.
	events *events.Bus
	early  []events.Event
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
	if e.Kind == vmm.EventTrouble || e.Kind == vmm.EventDeviceReset {
		fmt.Fprintf(os.Stderr, "godwit: %v\r\n", e.Err)
	}
	h.publish(publicEvent(e))
	h.mu.Lock()
	server := h.server
	h.mu.Unlock()
	if server != nil {
		server.Event(e)
	}
}

// publish tells others of an event, as soon as they can ask for events.
func (h *host) publish(e events.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.events == nil {
		e.Time = time.Now().UTC()
		h.early = append(h.early, e)
		return
	}
	h.events.Publish(e)
}

// publicEvent is an event as others see it.
func publicEvent(e vmm.Event) events.Event {
	p := events.Event{Type: events.Type(e.Kind), Message: e.Path, Device: e.Device}
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
	i.answers = func() { h.publish(events.Event{Type: events.Up}) }
	h.publishEarly(events.New(i.name))
	if listen == nil {
		return
	}
	h.served, h.listening = make(chan error, 1), make(chan struct{})
	go func() {
		opened := sync.OnceFunc(func() { close(h.listening) })
		defer opened()
		h.served <- h.listen(func() (net.Listener, error) {
			defer opened()
			return listen()
		})
	}()
}

// publishEarly begins to publish events, with those that there were already.
func (h *host) publishEarly(b *events.Bus) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.early {
		b.Publish(e)
	}
	h.events, h.early = b, nil
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
			Events:  h.events,
			Metrics: f, MetricsFile: f.writeTo, FlushMetrics: f.flush,
			Journal: openJournal,
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
	_ = h.console.Close()
	drain, stop := context.WithTimeout(context.Background(), drainTimeout)
	defer stop()
	// Who does not read misses the end.
	h.mu.Lock()
	bus := h.events
	h.mu.Unlock()
	if bus != nil {
		_ = bus.Close()
		_ = bus.Drain(drain)
	}
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
