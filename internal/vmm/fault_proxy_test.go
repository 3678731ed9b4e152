package vmm

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// way is a direction of a proxy.
type way int

const (
	toDestination way = iota
	toSource
)

// traffic is what a proxy does with what comes.
type traffic int

const (
	flows traffic = iota
	// held traffic goes on when the proxy lets it flow; lost traffic is gone, and so
	// are the connections that it was lost on when it flows again.
	held
	lost
)

// proxy is the network between a source and a destination.
type proxy struct {
	l net.Listener
	// wire, unless it is nil, has the network namespaces; the proxy is where the source is.
	wire *wiring

	mu      sync.Mutex
	changed sync.Cond
	target  string
	traffic [2]traffic
	corrupt [2]bool
	wires   map[*wire]bool
	closed  bool
	work    sync.WaitGroup
}

// wire is one connection: its two ends.
type wire struct {
	ends [2]*net.TCPConn // to the destination, to the source
	// busy says for each direction that something has been read and not passed on.
	busy [2]bool
	cut  bool
}

func newProxy(t *testing.T) *proxy { return newProxyIn(t, nil) }

func newProxyIn(t *testing.T, w *wiring) *proxy {
	t.Helper()
	p := &proxy{wire: w, wires: make(map[*wire]bool)}
	err := w.inside("source", func() (err error) {
		p.l, err = net.Listen("tcp", w.listen("source"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	p.changed.L = &p.mu
	p.work.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

func (p *proxy) addr() string { return p.l.Addr().String() }

// to says where the destination is now.
func (p *proxy) to(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = addr
}

func (p *proxy) set(w way, to traffic) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.traffic[w] = to
}

// corruptNext changes a byte of what comes next.
func (p *proxy) corruptNext(w way) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.corrupt[w] = true
}

// heal lets everything flow.
func (p *proxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.traffic, p.corrupt = [2]traffic{flows, flows}, [2]bool{}
	for w := range p.wires {
		if w.cut {
			p.drop(w)
		}
	}
	p.changed.Broadcast()
}

// drop resets a connection. The caller holds mu.
func (p *proxy) drop(w *wire) {
	delete(p.wires, w)
	for _, c := range w.ends {
		if c != nil {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	}
}

func (p *proxy) close() {
	p.mu.Lock()
	p.closed = true
	for w := range p.wires {
		p.drop(w)
	}
	p.mu.Unlock()
	p.heal()
	_ = p.l.Close()
	p.work.Wait()
}

func (p *proxy) accept() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		p.work.Go(func() { p.join(c.(*net.TCPConn)) })
	}
}

// join connects a source that dials, when the network lets it.
func (p *proxy) join(c *net.TCPConn) {
	w := &wire{ends: [2]*net.TCPConn{toSource: c}}
	p.mu.Lock()
	p.wires[w] = true
	for p.cut() && !p.closed {
		w.cut = w.cut || p.traffic[0] == lost || p.traffic[1] == lost
		p.changed.Wait()
	}
	gone, target := !p.wires[w] || p.closed, p.target
	p.mu.Unlock()
	if gone {
		_ = c.Close()
		return
	}
	var d net.Conn
	err := p.wire.inside("source", func() (err error) {
		d, err = net.Dial("tcp", target)
		return err
	})
	p.mu.Lock()
	if err != nil || p.closed || !p.wires[w] {
		p.drop(w)
		p.mu.Unlock()
		if err == nil {
			_ = d.Close()
		}
		return
	}
	w.ends[toDestination] = d.(*net.TCPConn)
	p.mu.Unlock()
	p.work.Go(func() { p.pump(w, toSource) })
	p.pump(w, toDestination)
}

// pump passes on what goes one way.
func (p *proxy) pump(w *wire, to way) {
	in, out := w.ends[1-to], w.ends[to]
	b := make([]byte, 64<<10)
	for {
		n, err := in.Read(b)
		if err != nil {
			p.hangUp(w)
			return
		}
		if !p.pass(w, to, b[:n]) {
			continue
		}
		if _, err := out.Write(b[:n]); err != nil {
			p.hangUp(w)
			return
		}
		p.mu.Lock()
		w.busy[to] = false
		p.mu.Unlock()
	}
}

// cut says whether something does not flow. The caller holds mu.
func (p *proxy) cut() bool { return p.traffic != [2]traffic{flows, flows} }

// hangUp passes the end of a connection on, which a cut network does not.
func (p *proxy) hangUp(w *wire) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.cut() && p.wires[w] {
		w.cut = true
		p.changed.Wait()
	}
	p.drop(w)
}

// pass waits until what was read may go on, and says whether it does.
func (p *proxy) pass(w *wire, to way, b []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.busy[to] = true
	for p.traffic[to] == held && p.wires[w] {
		p.changed.Wait()
	}
	if p.traffic[to] == lost {
		w.cut, w.busy[to] = true, false
		return false
	}
	if p.corrupt[to] {
		p.corrupt[to] = false
		b[len(b)/2] ^= 0x10
	}
	return true
}

// drain waits until what was sent before has gone on, as far as the receivers take it.
func (p *proxy) drain(within time.Duration) {
	for end := time.Now().Add(within); !p.idle() && time.Now().Before(end); {
		time.Sleep(100 * time.Microsecond) // a network has no event for this
	}
}

func (p *proxy) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for w := range p.wires {
		if w.busy[0] || w.busy[1] {
			return false
		}
		for _, c := range w.ends {
			if c != nil && waiting(c) > 0 {
				return false
			}
		}
	}
	return true
}

// waiting is how many bytes have come that were not read yet.
func waiting(c *net.TCPConn) (n int) {
	raw, err := c.SyscallConn()
	if err == nil {
		var failed error
		err = errors.Join(raw.Control(func(fd uintptr) { n, failed = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }), failed)
	}
	if err != nil {
		return 0
	}
	return n
}
