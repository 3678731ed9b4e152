package pci

import (
	"encoding/binary"
	"encoding/json"
	"reflect"
	"testing"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/memory"
)

var (
	testWindow32 = memory.Range{Start: memory.PCIWindowStart, Size: uint64(memory.PCIWindowEnd - memory.PCIWindowStart)}
	testWindow64 = memory.Range{Start: 8 << 30, Size: 64 << 30}
	testRAM      = []memory.Range{{Start: 0, Size: 1 << 30}, {Start: memory.HighStart, Size: 1 << 30}}
)

// ram is the Handler of a BAR: plain memory that notes nothing.
type ram []byte

func (r ram) Read(offset uint64, data []byte) {
	clear(data)
	if offset < uint64(len(r)) {
		copy(data, r[offset:])
	}
}

func (r ram) Write(offset uint64, data []byte) {
	if offset < uint64(len(r)) {
		copy(r[offset:], data)
	}
}

// bench is a bus with everything around it.
type bench struct {
	t    testing.TB
	mmio devices.Bus
	bus  *Bus
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{t: t}
	b.bus = NewBus(BusConfig{MMIO: &b.mmio, RAM: testRAM, Window32: testWindow32, Window64: testWindow64})
	if err := b.mmio.Map("ECAM", uint64(memory.ECAMStart), memory.ECAMSize, b.bus.ECAM()); err != nil {
		t.Fatal(err)
	}
	return b
}

func testFunction(t testing.TB, name string, add ...BAR) *Function {
	t.Helper()
	f := NewFunction(FunctionConfig{Name: name, VendorID: 0x1af4, DeviceID: 0x1041, Class: 0x020000, SubsystemID: 0x40})
	for _, bar := range add {
		if bar.Handler == nil {
			bar.Handler = make(ram, 64)
		}
		if err := f.AddBAR(bar); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (b *bench) add(f *Function) int {
	b.t.Helper()
	slot, err := b.bus.Add(f)
	if err != nil {
		b.t.Fatal(err)
	}
	return slot
}

func ecamAddr(slot, reg int) uint64 { return uint64(memory.ECAMStart) + uint64(slot)<<15 + uint64(reg) }

func (b *bench) read(slot, reg, size int) uint64 {
	var data [8]byte
	b.mmio.Read(ecamAddr(slot, reg), data[:size])
	return binary.LittleEndian.Uint64(data[:])
}

func (b *bench) write(slot, reg, size int, v uint64) {
	var data [8]byte
	binary.LittleEndian.PutUint64(data[:], v)
	b.mmio.Write(ecamAddr(slot, reg), data[:size])
}

func (b *bench) decode(slot int, on bool) {
	command := uint64(0)
	if on {
		command = commandMemory
	}
	b.write(slot, regCommand, 2, command)
}

// at tells whether something answers at an address of the MMIO bus.
func (b *bench) at(addr uint64) bool {
	before, _ := b.mmio.Unclaimed()
	b.mmio.Read(addr, make([]byte, 4))
	after, _ := b.mmio.Unclaimed()
	return before == after
}

// restoreInto checks that a bus with the same functions that takes over the
// state saves the same.
func (b *bench) restoreInto(other *bench) {
	b.t.Helper()
	want := b.bus.Save()
	text, err := json.Marshal(want)
	if err != nil {
		b.t.Fatal(err)
	}
	var decoded BusState
	if err := json.Unmarshal(text, &decoded); err != nil {
		b.t.Fatal(err)
	}
	if err := other.bus.Restore(decoded); err != nil {
		b.t.Fatalf("restore: %v", err)
	}
	if got := other.bus.Save(); !reflect.DeepEqual(got, want) {
		b.t.Fatalf("saved again: %+v, want %+v", got, want)
	}
}
