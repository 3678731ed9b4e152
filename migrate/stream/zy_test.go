package stream

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestZY(t *testing.T) {
	if os.Getenv("ZY") == "" {
		t.Skip()
	}
	meas := func(name string, f func()) {
		c := cpu()
		f()
		fmt.Printf("%-30s cpu %.0f ms\n", name, (cpu() - c).Seconds()*1e3)
	}
	const size = benchSize
	const piece = 1 << 20
	buf := make([]byte, piece)
	for i := range buf {
		buf[i] = byte(i>>3) | 1
	}
	for range 3 {
		g := newMemory(t, size)
		mem := g.Regions()[0].Mem
		meas("populate+copy", func() {
			for at := 0; at < size; at += piece {
				unix.Madvise(mem[at:at+piece], unix.MADV_POPULATE_WRITE)
				copy(mem[at:], buf)
			}
		})
		meas("  pwrite warm", func() {
			for at := 0; at < size; at += piece {
				unix.Pwrite(g.FD(), buf, int64(at))
			}
		})
		meas("  copy warm", func() {
			for at := 0; at < size; at += piece {
				copy(mem[at:], buf)
			}
		})
		g.Close()
		g = newMemory(t, size)
		mem = g.Regions()[0].Mem
		meas("pwrite fresh", func() {
			for at := 0; at < size; at += piece {
				unix.Pwrite(g.FD(), buf, int64(at))
			}
		})
		meas("  then populate read", func() {
			for at := 0; at < size; at += piece {
				unix.Madvise(mem[at:at+piece], unix.MADV_POPULATE_READ)
			}
		})
		meas("  then populate write", func() {
			for at := 0; at < size; at += piece {
				unix.Madvise(mem[at:at+piece], unix.MADV_POPULATE_WRITE)
			}
		})
		g.Close()
		g = newMemory(t, size)
		mem = g.Regions()[0].Mem
		meas("pwrite fresh", func() {
			for at := 0; at < size; at += piece {
				unix.Pwrite(g.FD(), buf, int64(at))
			}
		})
		meas("  then populate write", func() {
			for at := 0; at < size; at += piece {
				unix.Madvise(mem[at:at+piece], unix.MADV_POPULATE_WRITE)
			}
		})
		g.Close()
	}
}
