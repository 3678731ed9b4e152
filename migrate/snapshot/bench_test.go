package snapshot

import (
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
// is of the medians.
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
			b.SetBytes(size)
			for b.Loop() {
				plain = append(plain, timePlain(b, parent, src))
				total, wrote := timeSnapshot(b, parent, src, workers)
				snap, pages = append(snap, total), append(pages, wrote)
			}
			b.ReportMetric(median(plain).Seconds(), "s-plain")
			b.ReportMetric(median(snap).Seconds(), "s-snapshot")
			b.ReportMetric(median(pages).Seconds(), "s-WritePages")
			b.ReportMetric(median(plain).Seconds()/median(snap).Seconds(), "ratio")
		})
	}
}

func median(d []time.Duration) time.Duration {
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
