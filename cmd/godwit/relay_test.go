package main

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/godwit-vmm/godwit/migrate/stream"
)

// relay passes connections of a migration without TLS on to a receiver, and knows enough
// of what passes to break them at a certain message.
type relay struct {
	l net.Listener
	// data counts the bytes on connections for memory, towards the receiver.
	data atomic.Uint64

	mu sync.Mutex
	to string
	// version, if set, replaces that of preambles.
	version byte
	// breaks is asked of each frame of a control connection; true breaks all connections
	// before the frame, and lets none in until mend.
	breaks func(toReceiver bool, kind byte) bool
	// holdPushed lets nothing pass of the memory that a source sends unasked after the
	// handover, until mend.
	holdPushed bool
	broken     bool
	conns      []net.Conn
}

// tokenSize is what a source sends behind the preamble of a connection for memory.
const tokenSize = 32

// kindHandover is the kind of frame with a message of the handover.
const kindHandover = 4

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{l: l, to: to}
	var passing sync.WaitGroup
	passing.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			passing.Go(func() { r.pass(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.cut()
		passing.Wait()
	})
	return r
}

func (r *relay) addr() string { return r.l.Addr().String() }

// cut breaks all connections.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = true
	for _, c := range r.conns {
		c.Close()
	}
	r.conns = nil
}

// speak has connections from now on be of a version.
func (r *relay) speak(version byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.version = version
}

// breakAt has connections broken; see breaks.
func (r *relay) breakAt(breaks func(toReceiver bool, kind byte) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.breaks = breaks
}

// mend lets connections pass again, to a receiver that may be elsewhere now.
func (r *relay) mend(to string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken, r.breaks, r.holdPushed, r.to = false, nil, false, to
}

func (r *relay) pass(source net.Conn) {
	defer source.Close()
	r.mu.Lock()
	to, broken, version, holdPushed := r.to, r.broken, r.version, r.holdPushed
	r.mu.Unlock()
	if broken {
		return
	}
	receiver, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer receiver.Close()
	r.mu.Lock()
	r.conns = append(r.conns, source, receiver)
	r.mu.Unlock()
	preamble := make([]byte, 32)
	if _, err := io.ReadFull(source, preamble); err != nil {
		return
	}
	if version != 0 {
		preamble[6] = version
	}
	if _, err := receiver.Write(preamble); err != nil {
		return
	}
	back := make(chan struct{})
	control := preamble[24] == 1
	go func() {
		defer close(back)
		defer source.Close()
		if control {
			r.frames(source, receiver, false)
		} else {
			io.Copy(source, receiver)
		}
	}()
	switch pushed := preamble[24] == byte(stream.Urgent) && preamble[26] == 1; {
	case control:
		r.frames(receiver, source, true)
	case pushed && holdPushed:
		io.CopyN(receiver, source, tokenSize)
		<-back
	default:
		io.Copy(io.MultiWriter(receiver, &counter{&r.data}), source)
	}
	receiver.Close()
	<-back
}

type counter struct{ n *atomic.Uint64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n.Add(uint64(len(p)))
	return len(p), nil
}

// frames passes on what follows a preamble of a source that has no token yet.
func (r *relay) frames(to io.Writer, from io.Reader, toReceiver bool) {
	if !toReceiver {
		// Two answers, and the token.
		for range 2 {
			head := make([]byte, 16)
			if _, err := io.ReadFull(from, head); err != nil {
				return
			}
			to.Write(head)
			io.CopyN(to, from, int64(binary.LittleEndian.Uint16(head[10:])))
			if head[8] != 0 {
				return
			}
		}
		io.CopyN(to, from, 32)
	}
	for {
		head := make([]byte, 5)
		if _, err := io.ReadFull(from, head); err != nil {
			return
		}
		r.mu.Lock()
		breaks := r.breaks != nil && r.breaks(toReceiver, head[0])
		r.mu.Unlock()
		if breaks {
			r.cut()
			return
		}
		to.Write(head)
		const checksum = 4
		body := make([]byte, binary.LittleEndian.Uint32(head[1:])+checksum)
		if _, err := io.ReadFull(from, body); err != nil {
			return
		}
		to.Write(body)
	}
}
