// Package api is the control interface of a running machine: HTTP over a unix
// socket, with the resource paths, methods and field names of Firecracker's API
// for what godwit has of it. Errors are objects with a fault_message.
//
//	GET   /balloon             the balloon's settings
//	PATCH /balloon             {"amount_mib": N}: ask the guest to give up so much
//	GET   /balloon/statistics  what the balloon and the guest say of memory
//	PATCH /drives/{id}         {"drive_id": id}: take over the size that the file has now
package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/machine"
)

// maxBody bounds a request's body in bytes: all of them are a few fields.
const maxBody = 64 << 10

// Limits on a client that does not get on: the socket is for programs of this
// machine, whose requests are small.
const (
	headerTimeout = 10 * time.Second
	maxHeader     = 16 << 10
)

// Server serves the API.
type Server struct {
	// machine is the one that runs now, nil while there is none. A guest that
	// reboots gets a new one.
	machine func() *machine.Machine
	http    http.Server
}

// New makes a server for the machine that current returns.
func New(current func() *machine.Machine) *Server {
	s := &Server{machine: current}
	mux := http.NewServeMux()
	mux.Handle("GET /balloon", handler(s.getBalloon))
	mux.Handle("PATCH /balloon", handler(s.patchBalloon))
	mux.Handle("GET /balloon/statistics", handler(s.getStatistics))
	mux.Handle("PATCH /drives/{id}", handler(s.patchDrive))
	mux.Handle("/", handler(func(r *http.Request) (any, error) {
		return nil, fmt.Errorf("there is no %s %s", r.Method, r.URL.Path)
	}))
	s.http = http.Server{Handler: mux, ReadTimeout: headerTimeout, MaxHeaderBytes: maxHeader}
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
	if err := s.http.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// handler is a resource: it returns what to send as JSON, nil for nothing, or
// what is wrong with the request.
type handler func(*http.Request) (any, error)

// Fault is the body of an error.
type Fault struct {
	Message string `json:"fault_message"`
}

// ServeHTTP implements http.Handler.
func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	answer, err := h(r)
	status := http.StatusOK
	switch {
	case err != nil:
		status, answer = http.StatusBadRequest, Fault{err.Error()}
	case answer == nil:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// A client that is gone does not need the rest.
	_ = json.NewEncoder(w).Encode(answer)
}

// decode reads the body into v. Fields that v does not have are an error: a
// client that sends one expects something of it.
func decode(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("the request's body: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the request's body has something behind its object")
	}
	return nil
}

// Balloon is the body of GET /balloon.
type Balloon struct {
	AmountMiB    uint64 `json:"amount_mib"`
	DeflateOnOOM bool   `json:"deflate_on_oom"`
	FreePages    bool   `json:"free_page_reporting"`
}

// BalloonUpdate is the body of PATCH /balloon.
type BalloonUpdate struct {
	AmountMiB *uint64 `json:"amount_mib"`
}

// running is the machine of now.
func (s *Server) running() (*machine.Machine, error) {
	if m := s.machine(); m != nil {
		return m, nil
	}
	return nil, errors.New("the guest is just rebooting: try again")
}

func (s *Server) balloon() (*balloon.Device, error) {
	m, err := s.running()
	if err != nil {
		return nil, err
	}
	if b := m.Balloon(); b != nil {
		return b, nil
	}
	return nil, errors.New("the machine has no balloon: boot it with --balloon")
}

func (s *Server) getBalloon(*http.Request) (any, error) {
	b, err := s.balloon()
	if err != nil {
		return nil, err
	}
	c := b.Config()
	return Balloon{b.Target() >> 20, c.DeflateOnOOM, c.FreePageReporting}, nil
}

func (s *Server) patchBalloon(r *http.Request) (any, error) {
	var u BalloonUpdate
	if err := decode(r, &u); err != nil {
		return nil, err
	}
	b, err := s.balloon()
	switch {
	case err != nil:
		return nil, err
	case u.AmountMiB == nil:
		return nil, errors.New("amount_mib is missing")
	case *u.AmountMiB > 1<<40:
		return nil, fmt.Errorf("amount_mib %d is more than any guest has", *u.AmountMiB)
	}
	return nil, b.SetTarget(*u.AmountMiB << 20)
}

func (s *Server) getStatistics(*http.Request) (any, error) {
	b, err := s.balloon()
	if err != nil {
		return nil, err
	}
	return b.Stats(), nil
}

// DriveUpdate is the body of PATCH /drives/{id}.
type DriveUpdate struct {
	DriveID string `json:"drive_id"`
}

// patchDrive has a disk take over the size of its file. Disks are numbered from
// 0 in the order of the command line.
func (s *Server) patchDrive(r *http.Request) (any, error) {
	var u DriveUpdate
	if err := decode(r, &u); err != nil {
		return nil, err
	}
	if u.DriveID != r.PathValue("id") {
		return nil, fmt.Errorf("drive_id %q is not the one of the path, %q", u.DriveID, r.PathValue("id"))
	}
	m, err := s.running()
	if err != nil {
		return nil, err
	}
	disks := m.Disks()
	i, err := strconv.ParseUint(u.DriveID, 10, 32)
	if err != nil || i >= uint64(len(disks)) {
		return nil, fmt.Errorf("there is no drive %q: the machine has %d, numbered from 0", u.DriveID, len(disks))
	}
	return nil, disks[i].Resize()
}
