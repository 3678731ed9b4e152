package stream

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

const benchSize = 256 << 20

// busyMemory is a guest's memory without a page of zeros.
func busyMemory(b *testing.B) *memory.Guest {
	g := newMemory(b, benchSize)
	rand.NewChaCha8([32]byte{1}).Read(g.Regions()[0].Mem)
	return g
}

// processorTime is what this process has used, of all processors. On a machine that has
// other things to do it says more than the time on the wall.
func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// forConnections runs a benchmark with and without TLS, over several connections.
func forConnections(b *testing.B, run func(b *testing.B, n int, secure bool)) {
	for _, secure := range []bool{false, true} {
		for _, n := range []int{1, 2, 4} {
			b.Run(fmt.Sprintf("tls=%v/conns=%d", secure, n), func(b *testing.B) { run(b, n, secure) })
		}
	}
}

// timed runs f for a benchmark, between what makes its connections and closes them.
func timed(b *testing.B, prepare func() (here, there []net.Conn), f func(here, there []net.Conn)) {
	b.SetBytes(benchSize)
	var used time.Duration
	for b.Loop() {
		b.StopTimer()
		here, there := prepare()
		used -= processorTime(b)
		b.StartTimer()
		f(here, there)
		b.StopTimer()
		used += processorTime(b)
		for i := range here {
			here[i].Close()
			there[i].Close()
		}
		b.StartTimer()
	}
	b.ReportMetric(used.Seconds()/float64(b.N)/benchSize*1e9, "cpu-s/GB")
}

// BenchmarkStream sends all memory of a guest to one that has used its memory already.
func BenchmarkStream(b *testing.B) {
	forConnections(b, func(b *testing.B, n int, secure bool) {
		benchStream(b, 1<<20, func(*memory.Guest) {}, func() (here, there []net.Conn) { return tcpPairs(b, n, secure) })
	})
}

// BenchmarkStreamFresh sends it to one that never used its memory, as in a migration.
func BenchmarkStreamFresh(b *testing.B) {
	forConnections(b, func(b *testing.B, n int, secure bool) {
		discard := func(dst *memory.Guest) {
			if _, err := dst.Discard(0, benchSize); err != nil {
				b.Fatal(err)
			}
		}
		benchStream(b, 1<<20, discard, func() (here, there []net.Conn) { return tcpPairs(b, n, secure) })
	})
}

// BenchmarkStreamPages gives the sender one page at a time, as scattered writes do.
func BenchmarkStreamPages(b *testing.B) {
	forConnections(b, func(b *testing.B, n int, secure bool) {
		benchStream(b, memory.PageSize, func(*memory.Guest) {}, func() (here, there []net.Conn) { return tcpPairs(b, n, secure) })
	})
}

func benchStream(b *testing.B, run int, reset func(*memory.Guest), pairs func() (here, there []net.Conn)) {
	src, dst := busyMemory(b), newMemory(b, benchSize)
	clear(dst.Regions()[0].Mem)
	var s *Sender
	prepare := func() (here, there []net.Conn) {
		reset(dst)
		here, there = pairs()
		r, err := NewReceiver(dst, ReceiverOptions{})
		if err != nil {
			b.Fatal(err)
		}
		for _, conn := range there {
			go r.Serve(b.Context(), conn)
		}
		s = NewSender(here, SenderOptions{})
		return here, there
	}
	timed(b, prepare, func([]net.Conn, []net.Conn) {
		mem := src.Regions()[0].Mem
		for at := 0; at < len(mem); at += run {
			if err := s.WritePages(int64(at), mem[at:at+run]); err != nil {
				b.Fatal(err)
			}
		}
		if err := s.Finish(b.Context()); err != nil {
			b.Fatal(err)
		}
		s.Close()
	})
}

// BenchmarkPlainCopy writes the same memory to as many connections, and reads it into a
// buffer: what BenchmarkStream is measured by.
func BenchmarkPlainCopy(b *testing.B) {
	mem := busyMemory(b).Regions()[0].Mem
	forConnections(b, func(b *testing.B, n int, secure bool) {
		pairs := func() (here, there []net.Conn) { return connect(b, n, nil, nil) }
		if secure {
			pairs = func() (here, there []net.Conn) { return plainTLS(b, n) }
		}
		timed(b, pairs, func(here, there []net.Conn) { plainCopy(b, mem, here, there) })
	})
}

func plainCopy(b *testing.B, mem []byte, here, there []net.Conn) {
	var work sync.WaitGroup
	share := len(mem) / len(here)
	for i := range here {
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
}
