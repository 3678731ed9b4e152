package pci

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/memory"
)

func TestAddBARRefuses(t *testing.T) {
	h := make(ram, 16)
	tests := []struct {
		name string
		bar  BAR
		ok   bool
	}{
		{"smallest", BAR{Index: 0, Size: 16, Handler: h}, true},
		{"last register", BAR{Index: 5, Size: 4096, Handler: h}, true},
		{"largest", BAR{Index: 0, Size: 1 << 31, Handler: h}, true},
		{"largest wide", BAR{Index: 0, Size: 1 << 44, Wide: true, Handler: h}, true},
		{"taken", BAR{Index: 2, Size: 4096, Handler: h}, false},
		{"upper half of another", BAR{Index: 3, Size: 4096, Handler: h}, false},
		{"wide into another", BAR{Index: 1, Size: 4096, Wide: true, Handler: h}, false},
		{"wide past the end", BAR{Index: 5, Size: 4096, Wide: true, Handler: h}, false},
		{"register 6", BAR{Index: 6, Size: 4096, Handler: h}, false},
		{"register -1", BAR{Index: -1, Size: 4096, Handler: h}, false},
		{"no size", BAR{Index: 0, Handler: h}, false},
		{"not a power of two", BAR{Index: 0, Size: 4097, Handler: h}, false},
		{"too small", BAR{Index: 0, Size: 8, Handler: h}, false},
		{"too large", BAR{Index: 0, Size: 1 << 32, Handler: h}, false},
		{"too large, wide", BAR{Index: 0, Size: 1 << 45, Wide: true, Handler: h}, false},
		{"no handler", BAR{Index: 0, Size: 4096}, false},
	}
	for _, test := range tests {
		f := testFunction(t, "net", BAR{Index: 2, Size: 4096, Wide: true})
		if err := f.AddBAR(test.bar); (err == nil) != test.ok {
			t.Errorf("%s: error %v", test.name, err)
		}
	}
}

func TestBARSizing(t *testing.T) {
	tests := []struct {
		name string
		bar  BAR
		want uint64 // of both registers, with all ones written
	}{
		{"4 KiB", BAR{Size: 4096}, 0x0000_0000_ffff_f000},
		{"16 bytes", BAR{Size: 16}, 0x0000_0000_ffff_fff0},
		{"2 GiB", BAR{Size: 1 << 31}, 0x0000_0000_8000_0000},
		{"wide", BAR{Size: 16 << 10, Wide: true}, 0xffff_ffff_ffff_c004},
		{"wide and large", BAR{Size: 8 << 30, Wide: true, Prefetchable: true}, 0xffff_fffe_0000_000c},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := testFunction(t, "net", test.bar)
			f.attached = true
			b := newBench(t)
			b.bus.functions[1] = f
			b.write(1, regBAR0, 4, math.MaxUint32)
			b.write(1, regBAR0+4, 4, math.MaxUint32)
			if got := b.read(1, regBAR0, 8); got != test.want {
				t.Errorf("reads %#x, want %#x", got, test.want)
			}
		})
	}
}

func TestAssign(t *testing.T) {
	b := newBench(t)
	var got []string
	for i, bars := range [][]BAR{
		{{Index: 0, Size: 4096}, {Index: 2, Size: 16 << 10, Wide: true}},
		{{Index: 1, Size: 1 << 30, Wide: true}, {Index: 3, Size: 64}},
		{{Index: 0, Size: 1 << 20}},
	} {
		f := testFunction(t, "f", bars...)
		if slot := b.add(f); slot != i+1 {
			t.Errorf("function %d in slot %d", i, slot)
		}
		for _, bar := range bars {
			got = append(got, fmt.Sprintf("%#x", f.barBase(bar.Index)))
		}
	}
	want := []string{"0xc0000000", "0xc0004000", "0x200000000", "0xc0008000", "0xc0100000"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("addresses %v, want %v", got, want)
	}
	for _, bar := range []BAR{{Size: 1 << 30}, {Size: 1 << 40, Wide: true}} {
		if _, err := b.bus.Add(testFunction(t, "big", bar)); !errors.Is(err, ErrFull) {
			t.Errorf("a BAR of %#x bytes: %v, want ErrFull", bar.Size, err)
		}
	}
	if slot := b.add(testFunction(t, "after")); slot != 4 {
		t.Errorf("what did not fit took a slot: the next is %d", slot)
	}
}

func TestSlots(t *testing.T) {
	b := newBench(t)
	if err := b.bus.AddAt(5, testFunction(t, "five")); err != nil {
		t.Fatal(err)
	}
	for _, slot := range []int{0, 5, -1, 32} {
		if b.bus.AddAt(slot, testFunction(t, "again")) == nil {
			t.Errorf("slot %d was given away", slot)
		}
	}
	for i := 1; i < Slots-1; i++ {
		want := i
		if i >= 5 {
			want++
		}
		if slot := b.add(testFunction(t, "f")); slot != want {
			t.Errorf("function %d in slot %d, want %d", i, slot, want)
		}
	}
	if _, err := b.bus.Add(testFunction(t, "late")); !errors.Is(err, ErrFull) {
		t.Errorf("a function too many: %v", err)
	}
	f := b.bus.functions[1]
	if err := newBench(t).bus.AddAt(1, f); err == nil {
		t.Error("one function on two buses")
	}
}

// moves notes where a window appears and disappears.
type moves []string

func (m *moves) note(base memory.GPA, mapped bool) {
	*m = append(*m, fmt.Sprintf("%#x %v", uint64(base), mapped))
}

func TestBARMapping(t *testing.T) {
	b := newBench(t)
	var m moves
	slot := b.add(testFunction(t, "net", BAR{Size: 4096, Wide: true, Moved: m.note}))
	const first, second, high = 0xc000_0000, 0xc100_0000, 0x3_0000_0000
	if b.at(first) {
		t.Error("mapped before decoding is enabled")
	}
	b.decode(slot, true)
	if !b.at(first) || !b.at(first+0xffc) || b.at(first+0x1000) {
		t.Error("not mapped where it was put")
	}
	var d [4]byte
	b.mmio.Write(first+8, []byte{1, 2, 3, 4})
	b.mmio.Read(first+8, d[:])
	if d != [4]byte{1, 2, 3, 4} {
		t.Errorf("the window reads %v", d)
	}
	b.write(slot, regBAR0, 4, second)
	if b.at(first) || !b.at(second) {
		t.Error("does not follow the register")
	}
	b.decode(slot, false)
	b.write(slot, regBAR0, 8, high)
	if b.at(second) || b.at(high) {
		t.Error("mapped with decoding disabled")
	}
	b.decode(slot, true)
	if !b.at(high) {
		t.Error("not mapped above 4 GiB")
	}
	b.write(slot, regBAR0, 8, 0)
	want := moves{"0xc0000000 true", "0xc0000000 false", "0xc1000000 true", "0xc1000000 false", "0x300000000 true", "0x300000000 false"}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("moves %v, want %v", m, want)
	}
	if n, _ := b.bus.Refusals(); n != 0 {
		t.Errorf("%d refusals", n)
	}
}

func TestBARConflicts(t *testing.T) {
	b := newBench(t)
	one := b.add(testFunction(t, "one", BAR{Size: 4096, Wide: true}))
	two := b.add(testFunction(t, "two", BAR{Size: 8192, Wide: true}))
	b.decode(one, true)
	b.decode(two, true)
	tests := []struct {
		name string
		base uint64
		want string // in the error
	}{
		{"over the other", 0xc000_0000, "two BAR 0 at 0xc0000000-0xc0001fff: overlaps one BAR 0"},
		{"over ECAM", 0xe000_0000, "overlaps ECAM"},
		{"over low RAM", 0x10_0000, "RAM"},
		{"over high RAM", 1 << 32, "RAM"},
		{"up to the end", math.MaxUint64 &^ 8191, ""},
	}
	for i, test := range tests {
		b.write(two, regBAR0, 8, test.base)
		n, err := b.bus.Refusals()
		if test.want == "" {
			if !b.at(test.base) {
				t.Errorf("%s: not mapped", test.name)
			}
			continue
		}
		if n != uint64(i+1) || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %d refusals, last %v", test.name, n, err)
		}
		b.write(two, regBAR0, 8, test.base) // the same again is not news
		if !b.at(0xc000_0000) {
			t.Errorf("%s: the other's window is gone", test.name)
		}
	}
	n, _ := b.bus.Refusals()
	if n != 4 {
		t.Errorf("%d refusals, want 4", n)
	}

	b.write(two, regBAR0, 8, 0xc000_0000)
	b.write(one, regBAR0, 8, 0xd000_0000)
	if !b.at(0xc000_1000) {
		t.Error("a refused BAR does not appear when its place gets free")
	}
}

func TestConfigAllocatesNothing(t *testing.T) {
	b := newBench(t)
	f := testFunction(t, "net", BAR{Size: 4096, Wide: true})
	if _, err := f.AddMSIX(MSIXConfig{BAR: 4, Vectors: 4, Backend: &recorder{}}); err != nil {
		t.Fatal(err)
	}
	slot := b.add(f)
	b.decode(slot, true)
	p := b.ports()
	data := make([]byte, 4)
	at := ecamAddr(slot, 0)
	noAllocs := func(what string, f func()) {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", what, n)
		}
	}
	noAllocs("configuration space", func() {
		b.mmio.Read(at, data)
		b.mmio.Read(at+regCommand, data)
		b.mmio.Write(at+regCommand, data)
		b.mmio.Read(ecamAddr(9, 0), data)
		p.Read(0xcf8, data)
		p.Read(0xcfc, data)
	})
	noAllocs("the MSI-X table", func() {
		f.msix.Notify(0)
		b.mmio.Read(f.barBase(4), data)
		b.mmio.Write(f.barBase(4), data)
		b.mmio.Read(f.barBase(4)+f.msix.pending, data)
	})
}
