package ring

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serve serves a console on a socket, as the API's server does, and returns its
// path.
func serve(t *testing.T, h *Handler) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/console", h)
	// An attached client outlives the time for a request.
	s := &http.Server{Handler: mux, ReadTimeout: 50 * time.Millisecond}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Close()
		<-done
		h.Ring.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := h.Ring.Drain(ctx); err != nil {
			t.Errorf("clients are still attached: %v", err)
		}
	})
	return path
}

// client is an attached client.
type client struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func attach(t *testing.T, path string) *client {
	t.Helper()
	c := request(t, path, "GET /console HTTP/1.1\r\nHost: godwit\r\nConnection: keep-alive, Upgrade\r\nUpgrade: godwit-console\r\n\r\n")
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != http.StatusSwitchingProtocols || answer.Header.Get("Upgrade") != Protocol {
		t.Fatalf("answer %s, %v", answer.Status, answer.Header)
	}
	return c
}

func request(t *testing.T, path, text string) *client {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return &client{t, conn, bufio.NewReader(conn)}
}

// expect reads what is to come next.
func (c *client) expect(want string) {
	c.t.Helper()
	p := make([]byte, len(want))
	if n, err := io.ReadFull(c.in, p); err != nil || string(p) != want {
		c.t.Fatalf("read %q, %v, want %q", p[:n], err, want)
	}
}

func (c *client) expectEnd() {
	c.t.Helper()
	// What was typed and nobody read makes it a reset.
	if rest, err := io.ReadAll(c.in); err != nil && !errors.Is(err, syscall.ECONNRESET) || len(rest) > 0 {
		c.t.Fatalf("%q and %v, want the end", rest, err)
	}
}

func TestAttach(t *testing.T) {
	typed := make(chan string, 10)
	h := &Handler{Ring: New(1000), Send: func(_ context.Context, p []byte) (int, error) {
		typed <- string(p)
		return len(p), nil
	}}
	path := serve(t, h)
	write(t, h.Ring, "boot\r\n")
	a, b := attach(t, path), attach(t, path)
	for _, c := range []*client{a, b} {
		c.expect("boot\r\n")
	}
	time.Sleep(100 * time.Millisecond) // longer than the server's ReadTimeout
	for i, c := range []*client{a, b} {
		want := fmt.Sprintf("from %d", i)
		io.WriteString(c, want)
		if got := <-typed; got != want {
			t.Errorf("the guest got %q, want %q", got, want)
		}
	}
	write(t, h.Ring, "echo")
	a.expect("echo")
	b.expect("echo")
	a.Close()
	write(t, h.Ring, " more")
	b.expect(" more")
	write(t, h.Ring, " last words")
	h.Ring.Close()
	b.expect(" last words")
	b.expectEnd()
}

// TestPipelined: what is typed may come right behind the request.
func TestPipelined(t *testing.T) {
	typed := make(chan string, 10)
	h := &Handler{Ring: New(1000), Send: func(_ context.Context, p []byte) (int, error) {
		typed <- string(p)
		return len(p), errors.New("the guest is just rebooting")
	}}
	c := request(t, serve(t, h), "GET /console HTTP/1.1\r\nHost: godwit\r\nConnection: upgrade\r\nUpgrade: Godwit-Console\r\n\r\nearly")
	if got := <-typed; got != "early" {
		t.Errorf("the guest got %q", got)
	}
	// An error of the guest does not end the session.
	io.WriteString(c, "again")
	if got := <-typed; got != "again" {
		t.Errorf("the guest got %q", got)
	}
}

// TestGone: a client that closes its connection is forgotten though the guest says
// nothing, takes no input, or says more than the client reads.
func TestGone(t *testing.T) {
	drained := func(t *testing.T, r *Ring) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := r.Drain(ctx); err != nil {
			t.Errorf("still attached: %v", err)
		}
	}
	stuck := func(ctx context.Context, _ []byte) (int, error) {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	t.Run("silent guest", func(t *testing.T) {
		h := &Handler{Ring: New(1000)}
		attach(t, serve(t, h)).Close()
		drained(t, h.Ring)
	})
	t.Run("guest that takes nothing", func(t *testing.T) {
		h := &Handler{Ring: New(1000), Send: stuck}
		c := attach(t, serve(t, h))
		io.WriteString(c, "hello")
		c.Close()
		drained(t, h.Ring)
	})
	t.Run("client that does not read", func(t *testing.T) {
		h := &Handler{Ring: New(4 << 20)}
		c := attach(t, serve(t, h))
		write(t, h.Ring, strings.Repeat("x", 4<<20))
		c.expect("xxx")
		c.Close()
		drained(t, h.Ring)
	})
	t.Run("end of a guest that takes nothing", func(t *testing.T) {
		h := &Handler{Ring: New(1000), Send: stuck}
		c := attach(t, serve(t, h))
		io.WriteString(c, strings.Repeat("x", 2*maxInput*inputSize))
		h.Ring.Close()
		c.expectEnd()
	})
	t.Run("last words of a client", func(t *testing.T) {
		got := make(chan string, maxInput)
		h := &Handler{Ring: New(1000), Send: func(_ context.Context, p []byte) (int, error) {
			time.Sleep(time.Millisecond) // later than the client's end
			got <- string(p)
			return len(p), nil
		}}
		want := strings.Repeat("0123456789abcdef", 10*inputSize/16)
		c := attach(t, serve(t, h))
		io.WriteString(c, want)
		c.Close()
		text := ""
		for len(text) < len(want) {
			text += <-got
		}
		if text != want {
			t.Errorf("the guest got %q", text)
		}
	})
}

// TestSlowClient: the guest and other clients go on while one does not read.
func TestSlowClient(t *testing.T) {
	h := &Handler{Ring: New(64 << 10)}
	path := serve(t, h)
	slow, quick := attach(t, path), attach(t, path)
	line := strings.Repeat("x", 1023) + "\n"
	for range 2 << 10 { // 2 MiB, more than the connection holds
		write(t, h.Ring, line)
	}
	write(t, h.Ring, "the end")
	h.Ring.Close()
	for _, c := range []*client{slow, quick} {
		got, err := io.ReadAll(c.in)
		if err != nil || !strings.HasSuffix(string(got), "\nthe end") {
			t.Errorf("%d bytes, %v, without the end", len(got), err)
		}
		if c == slow && !strings.Contains(string(got), " bytes lost]\r\n") {
			t.Error("the slow client was not told of what it lost")
		}
	}
}

func TestRequests(t *testing.T) {
	h := &Handler{Ring: New(1000)}
	write(t, h.Ring, "boot")
	path := serve(t, h)
	for _, tt := range []struct {
		name, request string
		status        int
		body          string
	}{
		{"what is kept", "GET /console HTTP/1.1\r\nHost: x\r\n\r\n", 200, "boot"},
		{"another protocol", "GET /console HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 400, "fault_message"},
		{"no protocol", "GET /console HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\r\n", 400, "fault_message"},
		{"another method", "PUT /console HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 400, "there is no PUT"},
		{"HTTP/2", "GET /console HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n", 400, "fault_message"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			answer, err := http.ReadResponse(request(t, path, tt.request).in, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			body, err := io.ReadAll(answer.Body)
			if err != nil || answer.StatusCode != tt.status || !strings.Contains(string(body), tt.body) {
				t.Errorf("status %d, %q, %v; want %d and %q", answer.StatusCode, body, err, tt.status, tt.body)
			}
		})
	}
}
