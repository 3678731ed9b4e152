package stream

import (
	"math/rand/v2"
	"testing"
)

// TestPageSet compares with a slice of bools.
func TestPageSet(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	const pages = 4 * 64
	for range 500 {
		s, want := make(pageSet, pages/64), make([]bool, pages)
		for range 1 + rnd.IntN(20) {
			first := rnd.Uint64N(pages)
			n := rnd.Uint64N(pages - first + 1)
			add := rnd.IntN(3) > 0
			if add {
				s.add(first, n)
			} else {
				s.remove(first, n)
			}
			for i := first; i < first+n; i++ {
				want[i] = add
			}
		}
		got := make([]bool, pages)
		end := rnd.Uint64N(pages + 1)
		for at := uint64(0); ; {
			first, n := s.next(at, end)
			if n == 0 {
				break
			}
			if first < at || first+n > end || !s.has(first, n) {
				t.Fatalf("run of %d from %d after %d, before %d", n, first, at, end)
			}
			if first+n < end && s.has(first+n, 1) {
				t.Fatalf("run of %d from %d goes on", n, first)
			}
			for i := first; i < first+n; i++ {
				got[i] = true
			}
			at = first + n
		}
		for i := range end {
			if got[i] != want[i] || s.has(i, 1) != want[i] {
				t.Fatalf("page %d: in a run %v, in the set %v, want %v", i, got[i], s.has(i, 1), want[i])
			}
		}
	}
}

// TestLanes spreads memory evenly, whatever the distance between the pages.
func TestLanes(t *testing.T) {
	for lanes := 1; lanes <= 16; lanes++ {
		for _, stride := range []uint64{1, 2, 3, 4, 8, 16, 64, 100, 1024, 4096} {
			const chunks = 4096
			load := make([]int, lanes)
			for i := range uint64(chunks) {
				load[laneOf(i*stride*chunkSize+i%chunkSize, lanes)]++
			}
			for i, n := range load {
				if n < chunks/lanes*9/10 || n > chunks/lanes*11/10+1 {
					t.Errorf("%d connections, each %dth chunk: connection %d has %d of %d", lanes, stride, i, n, chunks)
				}
			}
		}
	}
}
