package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/godwit-vmm/godwit/internal/vmm"
)

// answered is what is left to send when the answer was sent already.
var answered any = new(struct{ _ byte })

// request is what a resource gets to know of a request.
type request struct {
	*http.Request
	// id is the last part of the path of a resource that there may be several of.
	id string
}

// resource answers a request with what to send as JSON, nil for nothing, or with what
// is wrong.
type resource func(*request) (any, error)

// route is a method and a path. A path that ends in "/" is one of several resources
// with the ID behind it.
type route struct{ method, path string }

// routes are all resources but those that answer in a way of their own.
func (s *Server) routes() map[route]resource {
	return map[route]resource{
		{"GET", "/"}:                        s.getInfo,
		{"GET", "/version"}:                 s.getVersion,
		{"GET", "/vm/config"}:               s.getConfig,
		{"GET", "/machine-config"}:          s.getMachine,
		{"PUT", "/machine-config"}:          s.putMachine,
		{"PATCH", "/machine-config"}:        s.patchMachine,
		{"PUT", "/boot-source"}:             s.putBootSource,
		{"PUT", "/drives/"}:                 s.putDrive,
		{"PATCH", "/drives/"}:               s.patchDrive,
		{"PUT", "/network-interfaces/"}:     s.putNet,
		{"PATCH", "/network-interfaces/"}:   s.patchNet,
		{"PUT", "/vsock"}:                   s.putVsock,
		{"PUT", "/entropy"}:                 s.putEntropy,
		{"GET", "/balloon"}:                 s.getBalloon,
		{"PUT", "/balloon"}:                 s.putBalloon,
		{"PATCH", "/balloon"}:               s.patchBalloon,
		{"GET", "/balloon/statistics"}:      s.getStatistics,
		{"PATCH", "/balloon/statistics"}:    s.patchStatistics,
		{"GET", "/stats"}:                   s.getStats,
		{"PUT", "/actions"}:                 s.putAction,
		{"PATCH", "/vm"}:                    s.patchVM,
		{"PUT", "/snapshot/create"}:         s.createSnapshot,
		{"PUT", "/snapshot/load"}:           s.loadSnapshot,
		{"GET", "/migration"}:               s.getMigration,
		{"PATCH", "/migration"}:             s.patchMigration,
		{"PUT", "/logger"}:                  s.putLogger,
		{"PUT", "/metrics"}:                 s.putMetrics,
		{"PUT", "/cpu-config"}:              refuse(noTemplates),
		{"GET", "/mmds"}:                    refuse(noMMDS),
		{"PUT", "/mmds"}:                    refuse(noMMDS),
		{"PATCH", "/mmds"}:                  refuse(noMMDS),
		{"PUT", "/mmds/config"}:             refuse(noMMDS),
		{"PUT", "/pmem/"}:                   refuse(noPmem),
		{"PATCH", "/pmem/"}:                 refuse(noPmem),
		{"GET", "/hotplug/memory"}:          refuse(noHotplug),
		{"PUT", "/hotplug/memory"}:          refuse(noHotplug),
		{"PATCH", "/hotplug/memory"}:        refuse(noHotplug),
		{"PUT", "/serial"}:                  refuse("the serial console is the process's standard output, and GET /console: redirect one of them"),
		{"PATCH", "/balloon/hinting/start"}: refuse(noHinting),
		{"PATCH", "/balloon/hinting/stop"}:  refuse(noHinting),
		{"GET", "/balloon/hinting/status"}:  refuse(noHinting),
	}
}

// What godwit has instead of parts of Firecracker's API.
const (
	noTemplates = "godwit has no CPU templates: the guest gets the host's features"
	noMMDS      = "godwit has no metadata service: give the guest data by its kernel command line, a drive or vsock"
	noPmem      = "godwit has no pmem devices: use a drive"
	noHotplug   = "godwit cannot add memory to a guest: start it with the most that it may need, and take the rest away with the balloon"
	noHinting   = "godwit's balloon has no free page hinting: use free_page_reporting"
)

// refuse is a resource of Firecracker's that godwit does not have.
func refuse(why string) resource {
	return func(*request) (any, error) {
		return nil, fault("The requested operation is not supported: " + why + ".")
	}
}

// handler is the server's whole interface.
func (s *Server) handler() http.Handler {
	resources := s.routes()
	streams := map[route]http.Handler{
		{"GET", "/console"}:      s.o.Console,
		{"GET", "/events"}:       s.o.Events,
		{"GET", "/metrics"}:      s.o.Metrics,
		{"GET", "/openapi.yaml"}: http.HandlerFunc(serveDocument),
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, id := split(r.URL.Path)
		at := route{r.Method, path}
		if h := streams[at]; h != nil && r.ContentLength == 0 {
			s.logger.request(r, nil)
			h.ServeHTTP(w, r)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		answer, err := func() (any, error) {
			switch resource := resources[at]; {
			case at == route{"PUT", "/migration"}:
				if err := s.putMigration(w, &request{r, id}); err != nil {
					return nil, err
				}
				return answered, nil
			case resource == nil:
				return nil, fault(fmt.Sprintf("Invalid request method and/or path: %s %s.", r.Method, r.URL.Path))
			case r.Method == http.MethodGet && r.ContentLength != 0:
				return nil, fault("GET request cannot have a body.")
			default:
				return resource(&request{r, id})
			}
		}()
		s.logger.request(r, err)
		if answer == answered {
			return
		}
		reply(w, answer, err)
	})
}

// split is the path of a route, and the ID of a path that has one.
func split(path string) (of, id string) {
	for _, several := range []string{"/drives/", "/network-interfaces/", "/pmem/"} {
		if id, ok := strings.CutPrefix(path, several); ok {
			return several, id
		}
	}
	return path, ""
}

// fault is an error in the words of Firecracker, as whole sentences.
type fault string

// Error is the sentence.
func (f fault) Error() string { return string(f) }

// Fault is the body of an error.
type Fault struct {
	Message string `json:"fault_message"`
}

func reply(w http.ResponseWriter, answer any, err error) {
	status := http.StatusOK
	switch {
	case err != nil:
		status, answer = http.StatusBadRequest, Fault{message(err)}
	case answer == nil:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	// A client that is gone does not need the rest.
	_ = e.Encode(answer)
}

// message is an error as a client sees it. Clients of Firecracker know some by heart.
func message(err error) string {
	switch {
	case errors.Is(err, vmm.ErrNotStarted):
		return "The requested operation is not supported before starting the microVM."
	case errors.Is(err, vmm.ErrStarted):
		return "The requested operation is not supported after starting the microVM."
	case errors.Is(err, vmm.ErrConfigured):
		return "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."
	case errors.Is(err, vmm.ErrNotPaused):
		return `Create snapshot error: the guest runs: pause it before, or give "live": true.`
	}
	return err.Error()
}

// within says what a request was about, as Firecracker does.
func within(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s error: %w", what, err)
}
