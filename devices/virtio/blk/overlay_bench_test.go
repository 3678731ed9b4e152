package blk

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

// BenchmarkOverlay compares an overlay with a plain image, in turns of one run:
// reads of clusters that are in the base or in the overlay, writes of those that
// are in the overlay, and first writes, which copy the rest of a cluster from the
// base unless they cover it. The plain image of those is a hole, so that it has
// to grow as well. plain-ns and overlay-ns are for one request, of the best turn
// of each: on a machine that does other things, it alone means something.
func BenchmarkOverlay(b *testing.B) {
	const small, large = 4 << 10, 1 << 20
	for _, w := range []struct {
		name        string
		kind        uint32
		size, depth int
		filled      bool // all clusters are in the overlay
		first       bool // each write is the first of its clusters
	}{
		{"read-base-4K", typeIn, small, 1, false, false},
		{"read-base-4K", typeIn, small, 32, false, false},
		{"read-base-1M", typeIn, large, 4, false, false},
		{"read-overlay-4K", typeIn, small, 1, true, false},
		{"read-overlay-4K", typeIn, small, 32, true, false},
		{"read-overlay-1M", typeIn, large, 4, true, false},
		{"rewrite-4K", typeOut, small, 1, true, false},
		{"rewrite-4K", typeOut, small, 32, true, false},
		{"rewrite-1M", typeOut, large, 4, true, false},
		{"first-write-4K", typeOut, small, 1, false, true},
		{"first-write-4K", typeOut, small, 32, false, true},
		{"first-write-64K", typeOut, clusterSize, 1, false, true},
		{"first-write-1M", typeOut, large, 4, false, true},
	} {
		for _, scratch := range []bool{false, true} {
			if scratch && !w.first {
				continue // as with a name
			}
			name := fmt.Sprintf("%s-%d", w.name, w.depth)
			if scratch {
				name += "-scratch"
			}
			b.Run(name, func(b *testing.B) {
				plain, overlay := Config{Path: benchImage(b)}, Config{Path: benchImage(b)}
				if scratch {
					overlay.Scratch = NewScratch(os.Getenv("GODWIT_BENCH_DIR"))
					b.Cleanup(func() { overlay.Scratch.Close() })
				} else {
					overlay.Overlay = overlay.Path + ".overlay"
					b.Cleanup(func() { os.Remove(overlay.Overlay) })
				}
				if w.filled {
					fillOverlay(b, overlay)
				}
				var spinners [2]*spinner
				var disks [2]*disk
				for i, c := range []Config{plain, overlay} {
					disks[i] = newDiskWith(b, c, virtiotest.Options{Memory: virtiotest.NewMemory(b, 64<<20)})
					next := access(w.size == small, w.size)
					if w.first {
						next = everyCluster(w.size)
					}
					spinners[i] = newSpinner(b, disks[i].Driver, w.kind, w.size, w.depth, next)
				}
				turn := max(16, 2*w.depth)
				room := 0 // how many first writes there are left
				best := [2]time.Duration{1 << 62, 1 << 62}
				b.SetBytes(2 * int64(w.size))
				b.ReportAllocs()
				b.ResetTimer()
				for left := b.N; left > 0; left -= turn {
					if room -= turn; w.first && room < 0 {
						b.StopTimer()
						emptyDisk(b, disks[0].device)
						emptyDisk(b, disks[1].device)
						room = benchSize/max(w.size, clusterSize) - turn
						b.StartTimer()
					}
					for i, g := range spinners {
						start := time.Now()
						g.run(turn)
						best[i] = min(best[i], time.Since(start)/time.Duration(turn))
					}
				}
				b.ReportMetric(float64(best[0].Nanoseconds()), "plain-ns")
				b.ReportMetric(float64(best[1].Nanoseconds()), "overlay-ns")
				b.ReportMetric(float64(best[1])/float64(best[0]), "ratio")
			})
		}
	}
}

// everyCluster goes from cluster to cluster, or further if requests are larger.
func everyCluster(size int) func() uint64 {
	step := uint64(max(size, clusterSize))
	at := -step
	return func() uint64 {
		at = (at + step) % benchSize
		return at / SectorSize
	}
}

// fillOverlay makes an overlay that all clusters are in.
func fillOverlay(b *testing.B, c Config) {
	b.Helper()
	d, err := New(c)
	if err != nil {
		b.Fatal(err)
	}
	o, chunk := d.overlay, pattern(1<<20, 9)
	for at := uint64(0); at < benchSize; at += 1 << 20 {
		if errno := writeAt(o.fd, chunk, o.dataAt+at); errno != 0 {
			b.Fatal(errno)
		}
	}
	if errno := o.add(clusters{last: o.clusters - 1}); errno != 0 {
		b.Fatal(errno)
	}
	if err := d.Close(); err != nil {
		b.Fatal(err)
	}
}

// emptyDisk takes all clusters out of the overlay of a disk that nobody uses, or
// all data out of a disk without one.
func emptyDisk(b *testing.B, d *Device) {
	b.Helper()
	m, s := d.image, span{length: benchSize}
	if o := d.overlay; o != nil {
		m, s = o.file, o.inFile(s)
		for i := range o.words {
			o.words[i].Store(0)
		}
	}
	if errno := m.discardSpan(s); errno != 0 {
		b.Fatal(errno)
	}
}

// BenchmarkOpen is what it takes to open and close a disk: with nothing, with an
// overlay that is made, and with one without a name.
func BenchmarkOpen(b *testing.B) {
	path, _ := makeImage(b, 0)
	if err := os.Truncate(path, 10<<30); err != nil {
		b.Fatal(err)
	}
	for _, w := range []struct {
		name   string
		config func() Config
	}{
		{"plain", func() Config { return Config{Path: path} }},
		{"overlay", func() Config { return Config{Path: path, Overlay: path + ".overlay"} }},
		{"scratch", func() Config { return Config{Path: path, Scratch: NewScratch("")} }},
	} {
		b.Run(w.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c := w.config()
				d, err := New(c)
				if err != nil {
					b.Fatal(err)
				}
				if err := d.Close(); err != nil {
					b.Fatal(err)
				}
				if c.Scratch != nil {
					c.Scratch.Close()
				}
				if c.Overlay != "" {
					os.Remove(c.Overlay)
				}
			}
		})
	}
}
