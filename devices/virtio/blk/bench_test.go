package blk

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

// benchSize is the size of the image: small enough for the page cache.
const benchSize = 256 << 20

// benchImage makes an image and reads it, in GODWIT_BENCH_DIR if that is set,
// to say on which file system.
func benchImage(b *testing.B) string {
	b.Helper()
	dir := os.Getenv("GODWIT_BENCH_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	f, err := os.CreateTemp(dir, "bench*.img")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.Cleanup(func() { os.Remove(f.Name()) })
	chunk := pattern(1<<20, 3)
	for range benchSize >> 20 {
		if _, err := f.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	return filepath.Clean(f.Name())
}

// spinner is a guest that keeps a number of requests of one size in flight and
// spins on the used ring, as the micro-guests of the benchmarks do.
type spinner struct {
	b     *testing.B
	q     *virtiotest.Queue
	mem   *memory.Guest
	depth int
	// next is the sector of the next request.
	next func() uint64

	// What the guest touches, as it lies in memory: sectors and statuses of
	// the requests, and the rings.
	sectors, statuses [][]byte
	ring, event, used []byte
	askKick           []byte

	chains  []uint16         // head of each request
	request [QueueSize]uint8 // the request of each head
	avail   uint16
	seen    uint16
	kicks   int
}

func newSpinner(b *testing.B, d *virtiotest.Driver, kind uint32, size, depth int, next func() uint64) *spinner {
	q, mem := d.Queues[0], d.Memory
	g := &spinner{b: b, q: q, mem: mem.Guest, depth: depth, next: next}
	n := uint64(q.Size)
	g.ring, g.event = g.view(q.Avail+4, 2*n), g.view(q.Avail+4+memory.GPA(2*n), 2)
	g.used, g.askKick = g.view(q.Used+4, 8*n), g.view(q.Used+4+memory.GPA(8*n), 2)
	for i := range depth {
		h, s := mem.Put(header(kind, 0)), mem.Put([]byte{0xff})
		data := mem.Alloc(uint64(size), 4096)
		mem.Set(data, pattern(size, uint64(i)))
		g.sectors = append(g.sectors, g.view(h+8, 8))
		g.statuses = append(g.statuses, g.view(s, 1))
		head := q.Chain(
			virtiotest.Buffer{GPA: h, Len: headerSize},
			virtiotest.Buffer{GPA: data, Len: uint32(size), Write: kind == typeIn},
			virtiotest.Buffer{GPA: s, Len: statusSize, Write: true},
		)
		g.chains = append(g.chains, head)
		g.request[head] = uint8(i)
	}
	return g
}

func (g *spinner) view(gpa memory.GPA, n uint64) []byte {
	p, err := g.mem.Slice(gpa, n)
	if err != nil {
		g.b.Fatal(err)
	}
	return p
}

// put makes request i available.
func (g *spinner) put(i int) {
	binary.LittleEndian.PutUint64(g.sectors[i], g.next())
	binary.LittleEndian.PutUint16(g.ring[2*(g.avail%g.q.Size):], g.chains[i])
	g.avail++
}

// publish shows the device what was put since old, and kicks it if it asks for
// that. It is not interrupted: the event is always far away.
func (g *spinner) publish(old uint16) {
	binary.LittleEndian.PutUint16(g.event, g.seen+1<<15)
	if err := g.mem.StoreUint32(g.q.Avail, uint32(g.avail)<<16); err != nil {
		g.b.Fatal(err)
	}
	if event := binary.LittleEndian.Uint16(g.askKick); g.avail-event-1 < g.avail-old {
		g.kicks++
		g.q.Kick()
	}
}

// run makes n requests.
func (g *spinner) run(n int) {
	old, sent := g.avail, 0
	for ; sent < min(g.depth, n); sent++ {
		g.put(sent)
	}
	g.publish(old)
	for done := 0; done < n; {
		word, err := g.mem.LoadUint32(g.q.Used)
		if err != nil {
			g.b.Fatal(err)
		}
		old := g.avail
		for index := uint16(word >> 16); g.seen != index; g.seen++ {
			i := g.request[g.used[8*(g.seen%g.q.Size)]]
			if s := g.statuses[i][0]; s != 0 {
				g.b.Fatalf("request failed with status %d", s)
			}
			done++
			if sent < n {
				g.put(int(i))
				sent++
			}
		}
		if g.avail != old {
			g.publish(old)
		}
	}
}

// access is the order in which the disk is read or written.
func access(random bool, size int) func() uint64 {
	rng := rand.New(rand.NewPCG(1, 2))
	blocks, at := benchSize/size, -1
	return func() uint64 {
		if at++; random {
			at = rng.IntN(blocks)
		}
		return uint64(at%blocks) * uint64(size/SectorSize)
	}
}

// benchDisk measures requests of one kind.
func benchDisk(b *testing.B, c Config, kind uint32, size, depth int, next func() uint64) {
	if c.Path == "" {
		c.Path = benchImage(b)
	}
	mem := virtiotest.NewMemory(b, 128<<20)
	d := newDiskWith(b, c, virtiotest.Options{Memory: mem})
	g := newSpinner(b, d.Driver, kind, size, depth, next)
	g.run(2 * depth)
	g.kicks = 0
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime(b)
	g.run(b.N)
	b.ReportMetric(float64((cpuTime(b)-cpu).Nanoseconds())/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(g.kicks)/float64(b.N), "kicks/op")
}

// cpuTime is what this process has used, the spinning guest included.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkRandRead4K(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) { benchDisk(b, Config{}, typeIn, 4096, depth, access(true, 4096)) })
	}
}

func BenchmarkRandWrite4K(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) { benchDisk(b, Config{}, typeOut, 4096, depth, access(true, 4096)) })
	}
}

func BenchmarkSeqRead1M(b *testing.B) {
	for _, depth := range []int{1, 4} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) { benchDisk(b, Config{}, typeIn, 1<<20, depth, access(false, 1<<20)) })
	}
}

func BenchmarkSeqWrite1M(b *testing.B) {
	for _, depth := range []int{1, 4} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) { benchDisk(b, Config{}, typeOut, 1<<20, depth, access(false, 1<<20)) })
	}
}

// BenchmarkPlain is a loop of plain system calls, without a disk: what the
// others are measured against.
func BenchmarkPlain(b *testing.B) {
	for _, call := range []struct {
		name string
		call func(fd int, p []byte, offset int64) (int, error)
	}{{"pread", unix.Pread}, {"pwrite", unix.Pwrite}} {
		for _, size := range []int{4 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s=%dK", call.name, size>>10), func(b *testing.B) {
				fd, err := unix.Open(benchImage(b), unix.O_RDWR, 0)
				if err != nil {
					b.Fatal(err)
				}
				defer unix.Close(fd)
				next := access(size == 4<<10, size)
				data := pattern(4<<20, 5)
				b.SetBytes(int64(size))
				for at := 0; b.Loop(); at = (at + size) % len(data) {
					if _, err := call.call(fd, data[at:at+size], int64(next()*SectorSize)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkEngines compares the ways to carry out requests: on the goroutine of
// the queue, by the pool, and by the ring. What is in the page cache, and writes
// that it takes, are what inline is there for; cold and direct reads are what
// the others are there for.
func BenchmarkEngines(b *testing.B) {
	ways := []struct {
		name     string
		engine   engine
		noInline bool
	}{{"inline", engineBest, false}, {"pool", enginePool, true}, {"ring", engineRing, true}}
	for _, w := range []struct {
		name         string
		kind         uint32
		size, depth  int
		direct, cold bool
	}{
		{"cached-4K-1", typeIn, 4 << 10, 1, false, false},
		{"cached-4K-32", typeIn, 4 << 10, 32, false, false},
		{"cached-1M-4", typeIn, 1 << 20, 4, false, false},
		{"write-4K-1", typeOut, 4 << 10, 1, false, false},
		{"write-4K-32", typeOut, 4 << 10, 32, false, false},
		{"write-1M-4", typeOut, 1 << 20, 4, false, false},
		{"cold-4K-1", typeIn, 4 << 10, 1, false, true},
		{"cold-4K-32", typeIn, 4 << 10, 32, false, true},
		{"direct-4K-1", typeIn, 4 << 10, 1, true, false},
		{"direct-4K-32", typeIn, 4 << 10, 32, true, false},
		{"direct-1M-4", typeIn, 1 << 20, 4, true, false},
	} {
		for _, way := range ways {
			if w.direct && !way.noInline {
				continue
			}
			b.Run(w.name+"/"+way.name, func(b *testing.B) {
				if way.engine == engineRing && !hasRing(b) {
					b.Skip("the host has no io_uring")
				}
				path := benchImage(b)
				next := access(w.size == 4<<10, w.size)
				if w.cold {
					next = forgetting(b, path, next)
				}
				c := Config{Path: path, Direct: w.direct, engine: way.engine, noInline: way.noInline}
				benchDisk(b, c, w.kind, w.size, w.depth, next)
			})
		}
	}
}

// forgetting drops the page cache of the image now and then.
func forgetting(b *testing.B, path string, next func() uint64) func() uint64 {
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Close(fd) })
	n := 0
	return func() uint64 {
		if n%4096 == 0 {
			if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
				b.Fatal(err)
			}
		}
		n++
		return next()
	}
}

var _ virtio.Device = (*Device)(nil)
