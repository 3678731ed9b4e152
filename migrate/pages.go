package migrate

import (
	"context"
	"fmt"
	"math/bits"

	"github.com/godwit-vmm/godwit/memory"
)

// maxRun is how many bytes are given to a writer at once.
const maxRun = 1 << 20

// EachRun calls write for the runs of pages whose bits are set, in rising order and at
// most a MiB at once, and clears the bits. Pages are numbered as in the dirty log.
func EachRun(ctx context.Context, mem *memory.Guest, dirty []uint64, write func(offset int64, p []byte) error) error {
	for _, r := range mem.Regions() {
		first, end := r.Offset/memory.PageSize, (r.Offset+r.Size)/memory.PageSize
		for at := first; ; {
			from, n := nextRun(dirty, at, end, maxRun/memory.PageSize)
			if n == 0 {
				break
			}
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			offset := from * memory.PageSize
			p := r.Mem[offset-r.Offset : offset-r.Offset+n*memory.PageSize]
			err := mem.Await(p)
			if err == nil {
				err = write(int64(offset), p)
			}
			if err != nil {
				return fmt.Errorf("copy %d bytes of guest memory at %#x: %w", len(p), offset, err)
			}
			at = from + n
		}
	}
	clear(dirty)
	return nil
}

// nextRun finds the first run of set bits from bit at on, before bit end; it is at
// most most long, and 0 if there is none.
func nextRun(words []uint64, at, end, most uint64) (first, n uint64) {
	for at < end {
		w := words[at/64] >> (at % 64)
		if w == 0 {
			at = (at/64 + 1) * 64
			continue
		}
		at += uint64(bits.TrailingZeros64(w))
		break
	}
	if at >= end {
		return end, 0
	}
	first = at
	for at < end && at-first < most {
		w := ^words[at/64] >> (at % 64)
		run := min(uint64(bits.TrailingZeros64(w)), 64-at%64)
		if run == 0 {
			break
		}
		at += run
	}
	return first, min(at, end, first+most) - first
}

// CountBytes is how many bytes the pages have whose bits are set.
func CountBytes(words []uint64) uint64 {
	n := 0
	for _, w := range words {
		n += bits.OnesCount64(w)
	}
	return uint64(n) * memory.PageSize
}
