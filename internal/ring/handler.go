package ring

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Protocol is what a client asks to upgrade to.
const Protocol = "godwit-console"

const (
	// copySize is how much passes at once from a ring to a client, and
	// inputSize the other way, in bytes.
	copySize  = 16 << 10
	inputSize = 512
	// maxInput is how many pieces of input wait for a guest that does not take
	// them. Beyond that the client waits.
	maxInput = 64
	// inputTime is how long the guest has to take the rest of what was typed by
	// a client that is gone.
	inputTime = time.Second
)

// Handler serves a console over HTTP.
//
// A request to upgrade to Protocol is answered with 101, and from then on the
// connection is a stream of bytes: to the client what the guest wrote and writes,
// from the client what is typed. It ends when the ring is closed, or when the
// client closes it; closing only the direction to the guest counts as that.
//
// A plain GET is answered with what the ring keeps.
type Handler struct {
	Ring *Ring
	// Send gives the guest what a client typed. It may wait until the guest
	// takes it, until ctx ends. What it does not take because of an error is
	// lost: a guest that reboots, say, is not there to be typed to. Nil for a
	// console without input.
	Send func(ctx context.Context, p []byte) (int, error)
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method != http.MethodGet:
		fault(w, http.StatusBadRequest, "there is no %s %s", r.Method, r.URL.Path)
	case !hasToken(r.Header, "Connection", "upgrade"):
		w.Header().Set("Content-Type", "application/octet-stream")
		// A client that is gone does not need the rest.
		_, _ = w.Write(h.Ring.Bytes())
	case !hasToken(r.Header, "Upgrade", Protocol):
		w.Header().Set("Upgrade", Protocol)
		fault(w, http.StatusBadRequest, "upgrade to %q: the console speaks %s only", r.Header.Get("Upgrade"), Protocol)
	default:
		h.upgrade(w)
	}
}

// upgrade takes the connection over from the server.
func (h *Handler) upgrade(w http.ResponseWriter) {
	reader := h.Ring.Attach()
	defer reader.Close()
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		fault(w, http.StatusInternalServerError, "upgrade: %v", err)
		return
	}
	defer conn.Close()
	// The server's deadlines are for requests.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return
	}
	const answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + Protocol + "\r\n\r\n"
	if _, err := io.WriteString(conn, answer); err != nil {
		return
	}
	h.serve(conn, buffered, reader)
}

// serve passes bytes both ways until one side ends. in is what the client sends,
// a part of which the server may have read already.
func (h *Handler) serve(conn net.Conn, in io.Reader, reader *Reader) {
	ctx, cancel := context.WithCancel(context.Background())
	var input sync.WaitGroup
	typed := make(chan []byte, maxInput)
	input.Go(func() { h.send(ctx, typed) })
	input.Go(func() {
		receive(ctx, in, typed)
		// The client is gone. The other direction would not notice: the guest
		// may be silent, the client's buffer full.
		_ = reader.Close()
		_ = conn.SetWriteDeadline(time.Unix(1, 0))
	})
	if show(conn, reader) {
		// The guest is gone, and takes nothing more.
		cancel()
	}
	_ = conn.Close()
	late := time.AfterFunc(inputTime, cancel)
	input.Wait()
	late.Stop()
	cancel()
}

// show writes what the guest says to the client, and tells whether it has come to
// the end of that.
func show(client io.Writer, reader *Reader) (ended bool) {
	p := make([]byte, copySize)
	for {
		n, err := reader.Read(p)
		if err != nil {
			return errors.Is(err, io.EOF)
		}
		if _, err := client.Write(p[:n]); err != nil {
			return false
		}
	}
}

// receive takes what the client sends, until that ends.
func receive(ctx context.Context, in io.Reader, typed chan<- []byte) {
	defer close(typed)
	for {
		p := make([]byte, inputSize)
		n, err := in.Read(p)
		if n > 0 {
			select {
			case typed <- p[:n]:
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// send gives the guest what was typed.
func (h *Handler) send(ctx context.Context, typed <-chan []byte) {
	for p := range typed {
		if h.Send != nil {
			// See Send for errors.
			_, _ = h.Send(ctx, p)
		}
	}
}

// hasToken tells whether a header's list has a word, in any spelling
// (RFC 9110 §5.6.1).
func hasToken(h http.Header, name, word string) bool {
	for _, line := range h.Values(name) {
		for token := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(token), word) {
				return true
			}
		}
	}
	return false
}

// fault answers with an error in the form of the rest of the API.
func fault(w http.ResponseWriter, status int, format string, args ...any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"fault_message": fmt.Sprintf(format, args...)})
}
