package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/events"
	"github.com/godwit-vmm/godwit/internal/ring"
)

// serve serves on a socket and returns a client for it.
func serve(t *testing.T, h http.Handler) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Close()
		<-done
	})
	return New(path)
}

// recorder is a server that notes requests and gives one answer.
type recorder struct {
	requests []string
	status   int
	answer   string
}

func (s *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.requests = append(s.requests, strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Method, r.URL, body)))
	w.WriteHeader(s.status)
	io.WriteString(w, s.answer)
}

func TestRequests(t *testing.T) {
	for _, tt := range []struct {
		name           string
		status         int
		answer         string
		call           func(context.Context, *Client) (any, error)
		request, gives string
	}{
		{"info", 200, `{"id":"web","state":"Running","vmm_version":"1.2","app_name":"godwit","more":1}`,
			func(ctx context.Context, c *Client) (any, error) { return c.Info(ctx) },
			"GET /", "{ID:web State:Running VMMVersion:1.2 AppName:godwit}"},
		{"stats", 200, `{"state":"Paused","vcpu_count":2,"memory_bytes":3,"memory_granted_bytes":2,"memory_used_bytes":1,"started":"2026-01-02T03:04:05Z","uptime_us":7}`,
			func(ctx context.Context, c *Client) (any, error) { return c.Stats(ctx) },
			"GET /stats", "{State:Paused CPUs:2 Memory:3 Granted:2 Used:1 Started:2026-01-02 03:04:05 +0000 UTC Uptime:7}"},
		{"configuration", 200, `{"machine-config":{}}`,
			func(ctx context.Context, c *Client) (any, error) {
				config, err := c.Config(ctx)
				return string(config), err
			},
			"GET /vm/config", `{"machine-config":{}}`},
		{"pause", 204, "", func(ctx context.Context, c *Client) (any, error) { return nil, c.Pause(ctx) },
			`PATCH /vm {"state":"Paused"}`, "<nil>"},
		{"resume", 204, "", func(ctx context.Context, c *Client) (any, error) { return nil, c.Resume(ctx) },
			`PATCH /vm {"state":"Resumed"}`, "<nil>"},
		{"power button", 204, "", func(ctx context.Context, c *Client) (any, error) { return nil, c.PowerButton(ctx) },
			`PUT /actions {"action_type":"SendCtrlAltDel"}`, "<nil>"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &recorder{status: tt.status, answer: tt.answer}
			got, err := tt.call(t.Context(), serve(t, s))
			if gives := fmt.Sprintf("%+v", got); err != nil || gives != tt.gives {
				t.Errorf("got %s, %v, want %s", gives, err, tt.gives)
			}
			if len(s.requests) != 1 || s.requests[0] != tt.request {
				t.Errorf("sent %q, want %q", s.requests, tt.request)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		answer string
		want   string
		fault  bool
	}{
		{"fault", 400, `{"fault_message":"the guest is not started"}`, "the guest is not started", true},
		{"fault without a message", 404, `<html>`, "GET /: 404 Not Found", true},
		{"endless fault", 500, `{"fault_message":"` + strings.Repeat("x", maxAnswer) + `"}`, "GET /: 500 Internal Server Error", true},
		{"not JSON", 200, `hello`, "GET /: answer: invalid character", false},
		{"nothing", 200, ``, "GET /: answer: unexpected end", false},
		{"too long", 200, `{"id":"` + strings.Repeat("x", maxAnswer) + `"}`, "GET /: answer: it is longer than 1048576 bytes", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := serve(t, &recorder{status: tt.status, answer: tt.answer}).Info(t.Context())
			var f *Fault
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) || errors.As(err, &f) != tt.fault {
				t.Errorf("got %v, want %s", err, tt.want)
			}
			if f != nil && f.Status != tt.status {
				t.Errorf("status %d, want %d", f.Status, tt.status)
			}
		})
	}
}

func TestNobody(t *testing.T) {
	dir := t.TempDir()
	gone := filepath.Join(dir, "gone")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: gone})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, path := range []string{filepath.Join(dir, "none"), gone} {
		c := New(path)
		_, err := c.Info(t.Context())
		_, consoleErr := c.Console(t.Context())
		for _, err := range []error{err, consoleErr, c.Events(t.Context(), "", nil)} {
			if !errors.Is(err, ErrNobody) {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
}

// TestDeadServer: one that ends in the midst of an answer, or never gives one.
func TestDeadServer(t *testing.T) {
	c := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	_, err := c.Info(t.Context())
	_, consoleErr := c.Console(t.Context())
	for _, err := range []error{err, consoleErr} {
		if err == nil || !strings.Contains(err.Error(), "ended before it had answered") {
			t.Errorf("an aborted answer: %v", err)
		}
	}
	release := make(chan struct{})
	c = serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer close(release)
	for name, call := range map[string]func(context.Context) error{
		"info":    func(ctx context.Context) error { _, err := c.Info(ctx); return err },
		"console": func(ctx context.Context) error { _, err := c.Console(ctx); return err },
		"events":  func(ctx context.Context) error { return c.Events(ctx, "", nil) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s without an answer: %v", name, err)
		}
		cancel()
	}
}

func TestEvents(t *testing.T) {
	b := events.New("web")
	b.Publish(events.Event{Type: events.Started})
	c := serve(t, b)
	var got []events.Type
	err := c.Events(t.Context(), "0", func(e events.Event) error {
		got = append(got, e.Type)
		if e.Type == events.Started {
			b.Publish(events.Event{Type: events.Ended})
			b.Close()
		}
		return nil
	})
	if err != nil || fmt.Sprint(got) != "[started ended]" {
		t.Errorf("events %v, %v", got, err)
	}
	stop := errors.New("enough")
	if err := c.Events(t.Context(), "0", func(events.Event) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("broken off: %v", err)
	}
	var f *Fault
	if err := c.Events(t.Context(), "yesterday", nil); !errors.As(err, &f) {
		t.Errorf("a bad query: %v", err)
	}
}

func TestEventsEnd(t *testing.T) {
	line, _ := json.Marshal(events.Event{Type: events.Paused})
	for _, tt := range []struct {
		name, stream string
		abort        bool
		n            int
		want         string
	}{
		{"half a line", string(line) + "\n" + `{"seq":`, true, 1, ""},
		{"end without a line", string(line) + "\n" + `{"seq":`, false, 1, ""},
		{"no JSON", string(line) + "\nhello\n" + string(line) + "\n", false, 1, `"hello\n" is no event`},
		{"a line without end", strings.Repeat("x", maxEvent+1), false, 0, "longer than 65536 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				io.WriteString(w, tt.stream)
				http.NewResponseController(w).Flush()
				if tt.abort {
					panic(http.ErrAbortHandler)
				}
			}))
			n := 0
			err := c.Events(t.Context(), "", func(events.Event) error { n++; return nil })
			if n != tt.n || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%d events, %v; want %d, %q", n, err, tt.n, tt.want)
			}
		})
	}
	t.Run("context", func(t *testing.T) {
		b := events.New("web")
		b.Publish(events.Event{Type: events.Paused})
		ctx, cancel := context.WithCancel(t.Context())
		err := serve(t, b).Events(ctx, "0", func(events.Event) error { cancel(); return nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

func TestConsole(t *testing.T) {
	typed := make(chan string, 10)
	h := &ring.Handler{Ring: ring.New(1 << 20), Send: func(_ context.Context, p []byte) (int, error) {
		typed <- string(p)
		return len(p), nil
	}}
	// More than fits behind the header of the answer.
	before := strings.Repeat("0123456789abcdef", 8<<10)
	io.WriteString(h.Ring, before)
	ctx, cancel := context.WithCancel(t.Context())
	c, err := serve(t, h).Console(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel() // bounds the connecting only
	got := make([]byte, len(before))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != before {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	io.WriteString(c, "ls\r")
	if got := <-typed; got != "ls\r" {
		t.Errorf("typed %q", got)
	}
	io.WriteString(h.Ring, "the end")
	h.Ring.Close()
	if rest, err := io.ReadAll(c); err != nil || string(rest) != "the end" {
		t.Errorf("read %q, %v", rest, err)
	}
}

func TestConsoleRefused(t *testing.T) {
	for _, tt := range []struct {
		status       int
		answer, want string
	}{
		{400, `{"fault_message":"there is no GET /console"}`, "there is no GET /console"},
		{200, "what is kept", "the console does not take connections: 200 OK"},
	} {
		_, err := serve(t, &recorder{status: tt.status, answer: tt.answer}).Console(t.Context())
		if err == nil || err.Error() != tt.want {
			t.Errorf("status %d: %v, want %s", tt.status, err, tt.want)
		}
	}
}
