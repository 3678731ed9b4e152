package stream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"github.com/godwit-vmm/godwit/memory"
)

const benchSize = 256 << 20

// busyMemory is a guest's memory without a page of zeros.
func busyMemory(b *testing.B) *memory.Guest {
	g := newMemory(b, benchSize)
	rnd := rand.NewChaCha8([32]byte{1})
	rnd.Read(g.Regions()[0].Mem)
	return g
}

// BenchmarkStream sends all memory of a guest, to one that never used its memory and to
// one that did.
func BenchmarkStream(b *testing.B) {
	for _, n := range []int{1, 2, 4} {
		for _, secure := range []bool{false, true} {
			for _, fresh := range []bool{true, false} {
				b.Run(fmt.Sprintf("conns=%d/tls=%v/fresh=%v", n, secure, fresh), func(b *testing.B) {
					benchStream(b, n, secure, fresh)
				})
			}
		}
	}
}

func benchStream(b *testing.B, n int, secure, fresh bool) {
	src, dst := busyMemory(b), newMemory(b, benchSize)
	clear(dst.Regions()[0].Mem)
	b.SetBytes(benchSize)
	for b.Loop() {
		b.StopTimer()
		if fresh {
			if _, err := dst.Discard(0, benchSize); err != nil {
				b.Fatal(err)
			}
		}
		here, there := tcpPairs(b, n, secure)
		r, err := NewReceiver(dst, ReceiverOptions{})
		if err != nil {
			b.Fatal(err)
		}
		var work sync.WaitGroup
		for _, conn := range there {
			work.Go(func() {
				if err := r.Serve(b.Context(), conn); err != nil {
					b.Error(err)
				}
				conn.Close()
			})
		}
		s := NewSender(here, SenderOptions{})
		b.StartTimer()
		mem := src.Regions()[0].Mem
		for at := 0; at < len(mem); at += 1 << 20 {
			if err := s.WritePages(int64(at), mem[at:at+1<<20]); err != nil {
				b.Fatal(err)
			}
		}
		if err := s.Finish(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		s.Close()
		work.Wait()
		b.StartTimer()
	}
}

// BenchmarkPlainCopy writes the same memory to as many connections, and reads it into a
// buffer: what BenchmarkStream is measured by.
func BenchmarkPlainCopy(b *testing.B) {
	for _, n := range []int{1, 2, 4} {
		for _, secure := range []bool{false, true} {
			b.Run(fmt.Sprintf("conns=%d/tls=%v", n, secure), func(b *testing.B) { benchPlain(b, n, secure) })
		}
	}
}

func benchPlain(b *testing.B, n int, secure bool) {
	mem := busyMemory(b).Regions()[0].Mem
	b.SetBytes(benchSize)
	for b.Loop() {
		b.StopTimer()
		here, there := connect(b, n, nil, nil)
		if secure {
			here, there = plainTLS(b, n)
		}
		b.StartTimer()
		var work sync.WaitGroup
		share := len(mem) / n
		for i := range n {
			work.Go(func() {
				part := mem[i*share : (i+1)*share]
				for at := 0; at < len(part); at += 1 << 20 {
					if _, err := here[i].Write(part[at : at+1<<20]); err != nil {
						b.Error(err)
						return
					}
				}
			})
			work.Go(func() {
				buf := make([]byte, 1<<20)
				for range share / len(buf) {
					if _, err := io.ReadFull(there[i], buf); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		work.Wait()
		b.StopTimer()
		for i := range n {
			here[i].Close()
			there[i].Close()
		}
		b.StartTimer()
	}
}

// tcpPairs makes connections over loopback, and returns both ends. Secure ones have TLS,
// as the set-up makes it.
func tcpPairs(t testing.TB, n int, secured bool) (here, there []net.Conn) {
	t.Helper()
	if !secured {
		return connect(t, n, nil, nil)
	}
	wrap := func(half func(net.Conn, *tls.Config) *tls.Conn, c *tls.Config) func(net.Conn) (net.Conn, error) {
		return func(conn net.Conn) (net.Conn, error) { return secure(t.Context(), half, conn, c) }
	}
	server, client := benchTLS(t)
	return connect(t, n, wrap(tls.Client, client), wrap(tls.Server, server))
}

// plainTLS are connections as crypto/tls makes them.
func plainTLS(t testing.TB, n int) (here, there []net.Conn) {
	t.Helper()
	wrap := func(half func(net.Conn, *tls.Config) *tls.Conn, c *tls.Config) func(net.Conn) (net.Conn, error) {
		return func(conn net.Conn) (net.Conn, error) {
			s := half(conn, c)
			return s, s.HandshakeContext(t.Context())
		}
	}
	server, client := benchTLS(t)
	return connect(t, n, wrap(tls.Client, client), wrap(tls.Server, server))
}

// connect makes connections, of which the ends are what near and far make of them.
func connect(t testing.TB, n int, near, far func(net.Conn) (net.Conn, error)) (here, there []net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for range n {
		a, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if near != nil {
			var work sync.WaitGroup
			var nearErr, farErr error
			work.Go(func() { b, farErr = far(b) })
			a, nearErr = near(a)
			work.Wait()
			if err := errors.Join(nearErr, farErr); err != nil {
				t.Fatal(err)
			}
		}
		here, there = append(here, a), append(there, b)
	}
	return here, there
}
