package snapshot

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

// BenchmarkWrite writes 1 GiB of memory that has no zero page, until it is on the
// disk, and compares that in pairs with plain writes of the same bytes. The ratio
// is the median of the pairs'.
func BenchmarkWrite(b *testing.B) {
	const size = 1 << 30
	src, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Munmap(src)
	chacha := rand.NewChaCha8([32]byte{})
	if _, err := chacha.Read(src); err != nil {
		b.Fatal(err)
	}
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("goroutines=%d", workers), func(b *testing.B) {
			parent := b.TempDir()
			var plain, snap, pages []time.Duration
			var ratios []float64
			b.SetBytes(size)
			for b.Loop() {
				plain = append(plain, timePlain(b, parent, src))
				total, wrote := timeSnapshot(b, parent, src, workers)
				snap, pages = append(snap, total), append(pages, wrote)
				ratios = append(ratios, plain[len(plain)-1].Seconds()/total.Seconds())
			}
			b.ReportMetric(median(plain).Seconds(), "s-plain")
			b.ReportMetric(median(snap).Seconds(), "s-snapshot")
			b.ReportMetric(median(pages).Seconds(), "s-WritePages")
			b.ReportMetric(median(ratios), "ratio")
		})
	}
}

func median[T cmp.Ordered](d []T) T {
	slices.Sort(d)
	return d[len(d)/2]
}

func timePlain(b *testing.B, parent string, src []byte) time.Duration {
	path := filepath.Join(parent, "plain")
	start := time.Now()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	for offset := 0; offset < len(src); offset += 1 << 20 {
		if _, err := f.WriteAt(src[offset:offset+1<<20], int64(offset)); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	took := time.Since(start)
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		b.Fatal(err)
	}
	return took
}

func timeSnapshot(b *testing.B, parent string, src []byte, workers int) (total, wrote time.Duration) {
	dir := filepath.Join(parent, "snap")
	start := time.Now()
	w := begin(b, dir, Options{Memory: []memory.Range{{Size: uint64(len(src))}}})
	var group sync.WaitGroup
	for worker := range workers {
		group.Go(func() {
			for offset := worker << 20; offset < len(src); offset += workers << 20 {
				if err := w.WritePages(int64(offset), src[offset:offset+1<<20]); err != nil {
					b.Error(err)
				}
			}
		})
	}
	group.Wait()
	wrote = time.Since(start)
	commit(b, w)
	total = time.Since(start)
	if err := os.RemoveAll(dir); err != nil {
		b.Fatal(err)
	}
	return total, wrote
}

// BenchmarkOpen opens an 8 GiB snapshot with three diffs, and asks where its memory
// lies: what a restore waits for.
func BenchmarkOpen(b *testing.B) {
	parent := b.TempDir()
	big := []memory.Range{{Size: 3 << 30}, {Start: memory.HighStart, Size: 5 << 30}}
	page := make([]byte, PageSize)
	page[0] = 1
	var base string
	for i := range 4 {
		dir := filepath.Join(parent, fmt.Sprint(i))
		w := begin(b, dir, Options{Memory: big, Base: base})
		for range 1000 {
			writePages(b, w, rand.Int64N(8<<30/PageSize)*PageSize, page)
		}
		commit(b, w)
		base = dir
	}
	for i, name := range []string{"full", "diffs=1", "diffs=2", "diffs=3"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				c, err := OpenChain(filepath.Join(parent, fmt.Sprint(i)))
				if err != nil {
					b.Fatal(err)
				}
				c.Extents()
				if err := c.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkVerify reads 256 MiB of memory, which are in the page cache.
func BenchmarkVerify(b *testing.B) {
	const size = 256 << 20
	dir := filepath.Join(b.TempDir(), "snap")
	w := begin(b, dir, Options{Memory: []memory.Range{{Size: size}}})
	p := make([]byte, size)
	if _, err := rand.NewChaCha8([32]byte{}).Read(p); err != nil {
		b.Fatal(err)
	}
	writePages(b, w, 0, p)
	commit(b, w)
	b.SetBytes(size)
	for b.Loop() {
		if err := Verify(context.Background(), dir, nil); err != nil {
			b.Fatal(err)
		}
	}
}
