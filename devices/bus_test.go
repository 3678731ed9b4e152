package devices

import (
	"bytes"
	"math"
	"strings"
	"sync"
	"testing"
)

// echo answers a read with its offset and notes what it gets.
type echo struct {
	tag     byte
	offsets []uint64
	written []byte
}

func (e *echo) Read(offset uint64, data []byte) {
	e.offsets = append(e.offsets, offset)
	for i := range data {
		data[i] = e.tag + byte(offset) + byte(i)
	}
}

func (e *echo) Write(offset uint64, data []byte) {
	e.offsets = append(e.offsets, offset)
	e.written = append(e.written, data...)
}

func TestBusMapRefuses(t *testing.T) {
	tests := []struct {
		name       string
		base, size uint64
		want       string // in the error; empty for success
	}{
		{"behind", 0x20, 0x10, ""},
		{"before", 0x00, 0x10, ""},
		{"same", 0x10, 0x10, "overlaps first at 0x10-0x1f"},
		{"inside", 0x14, 1, "overlaps first"},
		{"around", 0x00, 0x100, "overlaps first"},
		{"head", 0x0f, 2, "overlaps first"},
		{"tail", 0x1f, 2, "overlaps first"},
		{"empty", 0x40, 0, "empty"},
		{"up to the end", math.MaxUint64 - 0xf, 0x10, ""},
		{"past the end", math.MaxUint64 - 0xf, 0x11, "end of the address space"},
		{"everything", 1, math.MaxUint64, "overlaps first"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var b Bus
			if err := b.Map("first", 0x10, 0x10, &echo{}); err != nil {
				t.Fatal(err)
			}
			err := b.Map(test.name, test.base, test.size, &echo{})
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.name) {
				t.Fatalf("error %v, want one with %q and %q", err, test.want, test.name)
			}
			if got := len(b.windows()); got != 1 {
				t.Errorf("%d windows after a refused Map, want 1", got)
			}
		})
	}
}

func TestBusDispatch(t *testing.T) {
	tests := []struct {
		name    string
		addr    uint64
		size    int
		want    []byte
		offsets []uint64 // at the device from 0x10 to 0x1f
		stray   bool
	}{
		{"first byte", 0x10, 1, []byte{0}, []uint64{0}, false},
		{"last dword", 0x1c, 4, []byte{12, 13, 14, 15}, []uint64{12}, false},
		{"unaligned", 0x11, 8, []byte{1, 2, 3, 4, 5, 6, 7, 8}, []uint64{1}, false},
		{"odd size goes by bytes", 0x10, 3, []byte{0, 1, 2}, []uint64{0, 1, 2}, false},
		{"over the end, into another", 0x1f, 2, []byte{15, 0x80}, []uint64{15}, false},
		{"nothing", 0x30, 4, []byte{255, 255, 255, 255}, nil, true},
		{"from nothing into the window", 0x0f, 2, []byte{255, 0}, []uint64{0}, true},
		{"wraps", math.MaxUint64, 2, []byte{255, 255}, nil, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var b Bus
			e := &echo{}
			for _, w := range []struct {
				base uint64
				h    Handler
			}{{0x20, &echo{tag: 0x80}}, {0x10, e}, {0x40, &echo{}}} {
				if err := b.Map("device", w.base, 0x10, w.h); err != nil {
					t.Fatal(err)
				}
			}
			data := make([]byte, test.size)
			b.Read(test.addr, data)
			if !bytes.Equal(data, test.want) {
				t.Errorf("read %v, want %v", data, test.want)
			}
			if len(e.offsets) != len(test.offsets) {
				t.Fatalf("device saw offsets %v, want %v", e.offsets, test.offsets)
			}
			for i := range e.offsets {
				if e.offsets[i] != test.offsets[i] {
					t.Errorf("device saw offsets %v, want %v", e.offsets, test.offsets)
				}
			}
			b.Write(test.addr, data)
			want := uint64(0)
			if test.stray {
				want = 1
			}
			if r, w := b.Unclaimed(); r != want || w != want {
				t.Errorf("unclaimed %d reads and %d writes, want %d each", r, w, want)
			}
			if len(test.offsets) > 0 && len(e.written) == 0 {
				t.Error("the write did not arrive")
			}
		})
	}
}

func TestBusUnmap(t *testing.T) {
	var b Bus
	b.Unmap(0x10) // of nothing
	if err := b.Map("a", 0x10, 0x10, &echo{}); err != nil {
		t.Fatal(err)
	}
	b.Unmap(0x11) // not where a window starts
	if in8b(&b, 0x10) == 0xff {
		t.Error("unmapping at another base removed the window")
	}
	b.Unmap(0x10)
	if in8b(&b, 0x10) != 0xff {
		t.Error("the window is still there")
	}
	if err := b.Map("b", 0x08, 0x20, &echo{}); err != nil {
		t.Errorf("map where the window was: %v", err)
	}
}

func in8b(b *Bus, addr uint64) byte {
	var d [1]byte
	b.Read(addr, d[:])
	return d[0]
}

// TestBusConcurrent moves one window while others are in use; the race
// detector and the values watch.
func TestBusConcurrent(t *testing.T) {
	var b Bus
	if err := b.Map("fixed", 0x1000, 8, zeros{}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if got := in8b(&b, 0x1004); got != 0 {
					t.Errorf("read %#x from a window that is always there", got)
					return
				}
			}
		})
	}
	for i := range uint64(500) {
		if err := b.Map("moving", 0x2000+i, 1, zeros{}); err != nil {
			t.Error(err)
		}
		b.Unmap(0x2000 + i)
	}
	close(stop)
	wg.Wait()
}

type zeros struct{}

func (zeros) Read(_ uint64, data []byte) { clear(data) }
func (zeros) Write(uint64, []byte)       {}

func TestBusAllocatesNothing(t *testing.T) {
	var b Bus
	for i := range uint64(20) {
		if err := b.Map("device", i*16, 8, zeros{}); err != nil {
			t.Fatal(err)
		}
	}
	data := make([]byte, 4)
	noAllocs(t, "an access", func() {
		b.Read(0x44, data)
		b.Write(0x44, data)
		b.Read(0x46, data) // over the end
		b.Read(0x999, data)
	})
}

func FuzzBus(f *testing.F) {
	f.Add([]byte{0x10, 0x20, 0x11, 0x04, 0x08, 0x31})
	f.Fuzz(func(t *testing.T, program []byte) {
		var b Bus
		owner := map[uint64]uint64{} // byte address to window base
		for ; len(program) >= 3; program = program[3:] {
			base, size := uint64(program[0]), uint64(program[1]&0x1f)
			if program[2]&1 != 0 {
				b.Unmap(base)
				for a, o := range owner {
					if o == base {
						delete(owner, a)
					}
				}
				continue
			}
			free := size > 0
			for a := base; a < base+size; a++ {
				if _, taken := owner[a]; taken {
					free = false
				}
			}
			if err := b.Map("w", base, size, zeros{}); (err == nil) != free {
				t.Fatalf("map %d bytes at %#x: %v, free is %v", size, base, err, free)
			}
			for a := base; free && a < base+size; a++ {
				owner[a] = base
			}
			for a := uint64(0); a < 0x120; a++ {
				w := b.find(a)
				want, taken := owner[a]
				if (w != nil) != taken || w != nil && w.base != want {
					t.Fatalf("address %#x: window %+v, want base %#x, %v", a, w, want, taken)
				}
			}
		}
	})
}
