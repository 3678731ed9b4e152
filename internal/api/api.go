// Package api is the control interface of a guest: HTTP over a unix socket, with the
// resource paths, methods, field names, status codes and phases of Firecracker's API
// v1 for what godwit has of it, and resources of godwit's own beside them. The
// description for clients is openapi.yaml, which the server also gives out.
//
// A GET is answered with 200 and a JSON object, a PUT or PATCH with 204 and nothing,
// and all that is wrong with 400 and an object that has a fault_message. What
// Firecracker has and godwit does not is refused, never ignored.
package api

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/migrate/handover"
)

// Limits on a client that does not get on: the socket is for programs of this
// machine, whose requests are small.
const (
	requestTimeout = 10 * time.Second
	maxHeader      = 16 << 10
)

// Options are what the process has around its guest. What is nil is not there, and
// requests for it are refused.
type Options struct {
	// Version is the VMM's.
	Version string
	// Console, Events and Metrics serve the resources of these names.
	Console, Events, Metrics http.Handler
	// MetricsFile has metrics written to the file at a path from time to time, and
	// FlushMetrics has it done now.
	MetricsFile  func(path string) error
	FlushMetrics func() error
	// Journal opens the journal of this host's migrations.
	Journal func() (*handover.Journal, error)
}

// Server serves the API.
type Server struct {
	vm     *vmm.VM
	o      Options
	logger logger
	// metrics is what a client has asked for, nil for nothing.
	metrics   atomic.Pointer[Metrics]
	migration migration
	http      http.Server
}

// New makes a server for a guest.
func New(vm *vmm.VM, o Options) *Server {
	s := &Server{vm: vm, o: o}
	s.http = http.Server{
		Handler: s.handler(), ReadTimeout: requestTimeout, MaxHeaderBytes: maxHeader,
		// What net/http would say is of no use to the user.
		ErrorLog: log.New(io.Discard, "", 0),
	}
	return s
}

// Serve answers on l until Close, or until l is closed.
func (s *Server) Serve(l net.Listener) error {
	err := s.http.Serve(l)
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Close ends Serve and the requests that it has at hand.
func (s *Server) Close() error {
	err := s.http.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return errors.Join(err, s.logger.close())
}

// Event tells the server what has happened to the guest: it is for the log that a
// client has asked for. It does not wait.
func (s *Server) Event(e vmm.Event) { s.logger.event(e) }
