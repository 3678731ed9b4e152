package agent

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// endingServer is a server with one client.
func endingServer(t *testing.T) (*Server, *Client) {
	t.Helper()
	near, far := net.Pipe()
	server := &Server{Reaper: NewReaper()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(far)
	}()
	t.Cleanup(func() {
		far.Close()
		<-done
	})
	return server, dialTest(t, near)
}

// TestEnd has the machine end while commands run: the client learns of each how
// it ended, before the connection breaks.
func TestEnd(t *testing.T) {
	const long = 20 * time.Second // far more than anything here takes
	server, c := endingServer(t)
	start := func(cmd Command) *Process {
		t.Helper()
		p, err := c.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	// One ends by itself while BeginEnd waits, the others are killed after it.
	asked, ask := io.Pipe()
	said, says := io.Pipe()
	patient := start(Command{Args: []string{"sh", "-c", "read x; exit 3"}, Stdin: asked})
	graceful := start(Command{Args: []string{"sh", "-c", "trap 'exit 0' TERM; echo; while :; do sleep 0.01; done"}, Stdout: says})
	cut := start(Command{Args: []string{"sleep", "60"}})
	if _, err := said.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}

	begun := make(chan struct{})
	go func() {
		defer close(begun)
		server.BeginEnd(Reboot, 500*time.Millisecond)
	}()
	if _, err := ask.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if exit, err := patient.Wait(); err != nil || exit.Code != 3 {
		t.Errorf("a command that ends by itself: %v, %v", exit, err)
	}
	<-begun
	for _, p := range []*Process{graceful, cut} {
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	server.FinishEnd(long)
	if took := time.Since(began); took > long/2 {
		t.Errorf("the end took %v", took)
	}
	if exit, err := graceful.Wait(); err != nil || exit.Status() != 0 {
		t.Errorf("a command that ends well when it is asked to: %v, %v", exit, err)
	}
	var ending *EndingError
	_, err := cut.Wait()
	if !errors.As(err, &ending) || ending.How != Reboot || !errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), "reboots") {
		t.Errorf("a command that was cut off: %v", err)
	}
	if _, err := c.Start(Command{Args: []string{"true"}}); !errors.As(err, &ending) {
		t.Errorf("a command after the end: %v", err)
	}
	<-c.Done()
}

// TestEndWithoutAnswer has a client that does not read, and then one that has gone.
func TestEndWithoutAnswer(t *testing.T) {
	near, far := net.Pipe()
	server := &Server{Reaper: NewReaper()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(far)
	}()
	hello := make([]byte, preambleSize)
	if _, err := near.Read(hello); err != nil { // the beacon
		t.Fatal(err)
	}
	if _, err := near.Write(preamble{role: roleClient, nonce: newNonce()}.bytes()); err != nil {
		t.Fatal(err)
	}
	const patience = 50 * time.Millisecond
	start := time.Now()
	server.BeginEnd(Poweroff, patience)
	server.FinishEnd(patience)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the end took %v", took)
	}
	// Its connection breaks: there is nobody to wait for.
	near.Close()
	<-done
	server.FinishEnd(time.Hour)
}

// TestEndingRefused has a server that says what makes no sense.
func TestEndingRefused(t *testing.T) {
	for _, payload := range [][]byte{nil, {0}, {byte(endings)}, {1, 2}} {
		c := &Client{}
		if err := c.ended(frame{kind: kindEnding, payload: payload}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("ending % x: %v", payload, err)
		}
	}
}
