package stream

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func cpu() time.Duration {
	var r unix.Rusage
	unix.Getrusage(0, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// interleaved comparison
func TestZZ(t *testing.T) {
	if os.Getenv("ZZ") == "" {
		t.Skip("bench")
	}
	g := newMemory(t, benchSize)
	mem := g.Regions()[0].Mem
	for i := range mem {
		mem[i] = byte(i>>3) | 1
	}
	dg := newMemory(t, benchSize)
	dst := dg.Regions()[0].Mem
	clear(dst)
	type res struct{ wall, cpu []time.Duration }
	out := map[string]*res{}
	var names []string
	run := func(name string, f func()) {
		if !strings.Contains(name, os.Getenv("ZZ")) && os.Getenv("ZZ") != "1" {
			return
		}
		r := out[name]
		if r == nil {
			r = &res{}
			out[name] = r
			names = append(names, name)
		}
		c, w := cpu(), time.Now()
		f()
		r.wall = append(r.wall, time.Since(w))
		r.cpu = append(r.cpu, cpu()-c)
	}
	for range 8 {
		for _, secure := range []bool{false, true} {
			for _, n := range []int{1, 2, 4} {
				here, there := tcpPairs(t, n, false)
				if secure {
					here, there = plainTLS(t, n)
				}
				run(fmt.Sprintf("plain tls=%v n=%d", secure, n), func() {
					var work sync.WaitGroup
					share := len(mem) / n
					for i := range n {
						work.Go(func() {
							part := mem[i*share : (i+1)*share]
							for at := 0; at < len(part); at += 1 << 20 {
								here[i].Write(part[at : at+1<<20])
							}
						})
						work.Go(func() {
							buf := make([]byte, 1<<20)
							for range share / len(buf) {
								io.ReadFull(there[i], buf)
							}
						})
					}
					work.Wait()
				})
				for _, c := range append(here, there...) {
					c.Close()
				}
				for _, fresh := range []bool{false, true} {
					if fresh {
						dg.Discard(0, benchSize)
					}
					here, there = tcpPairs(t, n, secure)
					r, _ := NewReceiver(dg, ReceiverOptions{})
					for _, c := range there {
						go r.Serve(t.Context(), c)
					}
					s := NewSender(here, SenderOptions{})
					run(fmt.Sprintf("stream tls=%v n=%d fresh=%v", secure, n, fresh), func() {
						for at := 0; at < len(mem); at += 1 << 20 {
							s.WritePages(int64(at), mem[at:at+1<<20])
						}
						if err := s.Finish(t.Context()); err != nil {
							t.Error(err)
						}
					})
					s.Close()
					for _, c := range there {
						c.Close()
					}
				}
			}
		}
	}
	for _, name := range names {
		r := out[name]
		slices.Sort(r.wall)
		slices.Sort(r.cpu)
		ms := func(d time.Duration) float64 { return d.Seconds() * 1e3 }
		fmt.Printf("%-32s wall min %.0f med %.0f ms   cpu min %.0f med %.0f ms\n", name, ms(r.wall[0]), ms(r.wall[len(r.wall)/2]), ms(r.cpu[0]), ms(r.cpu[len(r.cpu)/2]))
	}
}
