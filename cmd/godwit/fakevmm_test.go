package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/api/client"
	"github.com/godwit-vmm/godwit/internal/events"
	consolering "github.com/godwit-vmm/godwit/internal/ring"
	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/spf13/cobra"
)

// fakeVMM serves the resources of a running guest that commands ask for.
type fakeVMM struct {
	dir     *rundir.Dir
	console *consolering.Ring
	bus     *events.Bus
	typed   chan string
	// pressed is called when the power button is; nil does nothing.
	pressed func()

	mu    sync.Mutex
	state string
	fault string // if not empty, what PUT and PATCH are refused with
}

// newFakeVMM registers a guest and serves its control socket until stop.
func newFakeVMM(name string) (v *fakeVMM, stop func(), _ error) {
	dir, err := rundir.Create(name)
	if err != nil {
		return nil, nil, err
	}
	l, err := net.Listen("unix", dir.Path(rundir.APIFile))
	if err != nil {
		return nil, nil, errors.Join(err, dir.Close())
	}
	v = &fakeVMM{
		dir: dir, console: consolering.New(consolering.DefaultSize), bus: events.New(name), typed: make(chan string, 100),
		state: client.Running,
	}
	server := &http.Server{Handler: v.handler()}
	go server.Serve(l)
	return v, func() {
		v.console.Close()
		v.bus.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		v.console.Drain(ctx)
		server.Shutdown(ctx)
		server.Close()
		dir.Close()
	}, nil
}

// startVMM runs a fake guest in this process.
func startVMM(t *testing.T, name string) *fakeVMM {
	t.Helper()
	v, stop, err := newFakeVMM(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return v
}

func (v *fakeVMM) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(client.Info{ID: v.dir.Name(), State: v.getState(), VMMVersion: "fake", AppName: "godwit"})
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(client.Stats{State: v.getState(), CPUs: 2, Memory: 1 << 30, Granted: 1 << 29, Used: 100 << 20})
	})
	mux.HandleFunc("PATCH /vm", v.change(func(body string) bool {
		switch body {
		case `{"state":"Paused"}`:
			v.setState(client.Paused)
		case `{"state":"Resumed"}`:
			v.setState(client.Running)
		default:
			return false
		}
		return true
	}))
	mux.HandleFunc("PUT /actions", v.change(func(body string) bool {
		if body == `{"action_type":"SendCtrlAltDel"}` && v.pressed != nil {
			v.pressed()
		}
		return body == `{"action_type":"SendCtrlAltDel"}`
	}))
	mux.Handle("GET /events", v.bus)
	mux.Handle("GET /console", &consolering.Handler{Ring: v.console, Send: func(_ context.Context, p []byte) (int, error) {
		v.typed <- string(p)
		return len(p), nil
	}})
	return mux
}

// change is a resource that refuses what it does not know, or all if there is a
// fault.
func (v *fakeVMM) change(do func(body string) bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var body json.RawMessage
		json.NewDecoder(r.Body).Decode(&body)
		v.mu.Lock()
		fault := v.fault
		v.mu.Unlock()
		if fault == "" && !do(string(body)) {
			fault = "unexpected body " + string(body)
		}
		if fault != "" {
			w.WriteHeader(http.StatusBadRequest)
			json.NewEncoder(w).Encode(map[string]string{"fault_message": fault})
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

func (v *fakeVMM) getState() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.state
}

func (v *fakeVMM) setState(s string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.state = s
}

func (v *fakeVMM) setFault(s string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fault = s
}

// What a fake guest in a process of its own does.
const (
	obedient   = "obedient"    // shuts down when its power button is pressed
	deaf       = "deaf"        // does not
	hung       = "hung"        // has a control socket that nobody serves
	silent     = "silent"      // has none
	notStarted = "not started" // waits to be configured
	paused     = "paused"      // is, and obedient
	rebooting  = "rebooting"   // refuses the power button at first, and is obedient then
)

// fakeVMMVariable makes TestFakeVMM such a process: behaviour, name and the folder
// of guests, with colons between.
const fakeVMMVariable = "GODWIT_TEST_VMM"

// TestFakeVMM is no test: it is the process of a fake guest.
func TestFakeVMM(t *testing.T) {
	words := strings.SplitN(os.Getenv(fakeVMMVariable), ":", 3)
	if len(words) != 3 {
		return
	}
	t.Setenv("GODWIT_RUNTIME_DIR", words[2])
	if words[0] == hung || words[0] == silent {
		dir, err := rundir.Create(words[1])
		if err == nil && words[0] == hung {
			_, err = net.Listen("unix", dir.Path(rundir.APIFile))
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("\nready")
		select {}
	}
	v, stop, err := newFakeVMM(words[1])
	if err != nil {
		t.Fatal(err)
	}
	off := make(chan struct{}, 10)
	v.pressed = func() {
		if words[0] != deaf && v.getState() == client.Running {
			off <- struct{}{}
		}
	}
	switch words[0] {
	case paused:
		v.setState(client.Paused)
	case notStarted:
		v.setState(client.NotStarted)
	case rebooting:
		v.setFault("the guest is just rebooting: try again")
		time.AfterFunc(pressInterval/2, func() { v.setFault("") })
	}
	v.bus.Publish(events.Event{Type: events.Started})
	fmt.Fprint(v.console, "booting\r\n")
	fmt.Println("\nready")
	<-off
	v.bus.Publish(events.Event{Type: events.Ended, Message: "powered off"})
	stop()
}

// startProcess runs a fake guest in a process of its own.
func startProcess(t *testing.T, name, behaviour string) *exec.Cmd {
	t.Helper()
	dir, err := rundir.Base()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(os.Args[0], "-test.run=^TestFakeVMM$")
	c.Env = append(os.Environ(), fakeVMMVariable+"="+behaviour+":"+name+":"+dir, "TMPDIR="+t.TempDir(),
		"GORACE=atexit_sleep_ms=0") // its end is waited for
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
		rundir.Remove(name)
	})
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "ready" {
			return c
		}
	}
	t.Fatalf("the process of guest %s did not start", name)
	return nil
}

// expectGone checks that nothing of a guest is left.
func expectGone(t *testing.T, name string) {
	t.Helper()
	if vm, err := rundir.Open(name); err == nil {
		vm.Close()
		t.Errorf("guest %s still runs", name)
	}
	base, err := rundir.Base()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(base, name)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("guest %s has left its folder: %v", name, err)
	}
}

// runCobra runs a command in this process and returns what it prints.
func runCobra(t *testing.T, c *cobra.Command, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, messages strings.Builder
	c.SetArgs(append([]string{}, args...)) // none are not the test's own
	c.SetOut(&out)
	c.SetErr(&messages)
	c.SilenceErrors, c.SilenceUsage = true, true
	err = c.ExecuteContext(t.Context())
	return out.String(), messages.String(), err
}

// ownGuests gives a test a folder of guests of its own.
func ownGuests(t *testing.T) {
	t.Helper()
	t.Setenv("GODWIT_RUNTIME_DIR", filepath.Join(t.TempDir(), "run"))
}
