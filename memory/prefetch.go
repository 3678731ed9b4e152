package memory

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Await waits, in a system call, until mem, a part of Region.Mem, is there to be read.
//
// Memory that a userfaultfd server brings must not be touched without it: Go takes a
// goroutine that waits in a page fault for one that runs, and the garbage collector could
// stop all others, the server among them, before it would stop that one. See package
// uffd. It takes Linux 5.14.
func Await(mem []byte) error {
	if err := populate(mem, unix.MADV_POPULATE_READ); err != nil {
		return fmt.Errorf("wait for %d bytes of guest memory: %w", len(mem), err)
	}
	return nil
}

// Span is a run of pages: Length bytes from Offset on (see Region.Offset). Both are
// multiples of PageSize.
type Span struct{ Offset, Length uint64 }

// prefetchAtOnce bounds a call, which holds the lock of the process's memory for reading.
const prefetchAtOnce = 2 << 20

// Prefetch maps pages before they are touched: those that were written for writing, which
// makes copies of the pages that a restored guest shares with others. It goes on until
// more says no, which is asked now and then; nil is yes. Runs that are none of the guest
// are an error.
func (g *Guest) Prefetch(runs []Touched, more func() bool) error {
	for _, t := range runs {
		if t.Offset > g.size || t.Length > g.size-t.Offset || (t.Offset|t.Length)%PageSize != 0 {
			return fmt.Errorf("prefetch %d bytes at offset %#x: they are not pages of a guest of %d bytes", t.Length, t.Offset, g.size)
		}
		how := unix.MADV_POPULATE_READ
		if t.Written {
			how = unix.MADV_POPULATE_WRITE
		}
		for i := range g.regions {
			r := &g.regions[i]
			first, end := max(t.Offset, r.Offset), min(t.Offset+t.Length, r.Offset+r.Size)
			for ; first < end; first += prefetchAtOnce {
				if more != nil && !more() {
					return nil
				}
				n := min(end-first, prefetchAtOnce)
				if err := populate(r.Mem[first-r.Offset:first-r.Offset+n], how); err != nil {
					return fmt.Errorf("prefetch %d bytes at offset %#x: %w", n, first, err)
				}
			}
		}
	}
	return nil
}

// populate is one of the kinds of MADV_POPULATE of the pages that mem lies in.
func populate(mem []byte, how int) error {
	if len(mem) == 0 {
		return nil
	}
	skew := addressOf(mem) % PageSize
	for {
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, addressOf(mem)-skew, uintptr(len(mem))+skew, uintptr(how))
		switch {
		case errno == 0:
			return nil
		case errors.Is(errno, unix.EINTR), errors.Is(errno, unix.EAGAIN):
		default:
			return errno
		}
	}
}
