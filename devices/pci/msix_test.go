package pci

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/godwit-vmm/godwit/devices"
)

// recorder is a VectorBackend that notes its calls.
type recorder struct {
	mu    sync.Mutex
	calls []string
	fail  error
}

func (r *recorder) note(format string, args ...any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
	return r.fail
}

func (r *recorder) Unmask(v int, m devices.MSI) error {
	return r.note("unmask %d %#x %#x", v, m.Address, m.Data)
}
func (r *recorder) Mask(v int) error { return r.note("mask %d", v) }
func (r *recorder) Fire(v int) error { return r.note("fire %d", v) }

// expect checks the calls since the last time.
func (r *recorder) expect(t *testing.T, what string, want ...string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.calls)+len(want) > 0 && !reflect.DeepEqual(r.calls, want) {
		t.Errorf("%s: backend calls %q, want %q", what, r.calls, want)
	}
	r.calls = nil
}

// vectorBench is a bus with one function with MSI-X.
type vectorBench struct {
	*bench
	*MSIX
	slot    int
	cap     int
	base    uint64
	backend *recorder
}

func newVectorBench(t testing.TB, n int) *vectorBench {
	t.Helper()
	v := &vectorBench{bench: newBench(t), backend: &recorder{}}
	f := testFunction(t, "net")
	m, err := f.AddMSIX(MSIXConfig{BAR: 1, Vectors: n, Backend: v.backend})
	if err != nil {
		t.Fatal(err)
	}
	v.MSIX, v.slot = m, v.add(f)
	v.cap = int(v.read(v.slot, regCapabilities, 1))
	v.base = f.barBase(1)
	v.decode(v.slot, true)
	return v
}

func (v *vectorBench) setControl(word uint16) { v.write(v.slot, v.cap+2, 2, uint64(word)) }

func (v *vectorBench) table(offset uint64, words ...uint32) {
	for i, w := range words {
		v.mmio.Write(v.base+offset+4*uint64(i), binary.LittleEndian.AppendUint32(nil, w))
	}
}

func (v *vectorBench) pba() uint64 {
	var d [8]byte
	v.mmio.Read(v.base+v.pending, d[:])
	return binary.LittleEndian.Uint64(d[:])
}

func TestMSIXCapability(t *testing.T) {
	tests := []struct {
		vectors int
		size    uint64
		ok      bool
	}{{1, 4096, true}, {128, 4096, true}, {129, 8192, true}, {2048, 65536, true}, {0, 0, false}, {2049, 0, false}}
	for _, test := range tests {
		f := testFunction(t, "net")
		m, err := f.AddMSIX(MSIXConfig{BAR: 1, Vectors: test.vectors, Backend: &recorder{}})
		if (err == nil) != test.ok {
			t.Fatalf("%d vectors: %v", test.vectors, err)
		}
		if !test.ok {
			continue
		}
		if got := f.bars[1].Size; got != test.size || m.pending != test.size/2 || m.Vectors() != test.vectors {
			t.Errorf("%d vectors: BAR of %d bytes, pending bits at %d", test.vectors, got, m.pending)
		}
		if _, err := f.AddMSIX(MSIXConfig{BAR: 2, Vectors: 1}); err == nil {
			t.Error("MSI-X twice")
		}
	}
	v := newVectorBench(t, 3)
	v.write(v.slot, v.cap, 8, ^uint64(0))
	if got := v.read(v.slot, v.cap+2, 2); got != msixEnable|msixMaskAll|2 {
		t.Errorf("message control %#x", got)
	}
	if got := v.read(v.slot, v.cap+4, 8); got != 0x0000_0801_0000_0001 {
		t.Errorf("table and pending bits at %#x", got)
	}
}

// TestMSIXLinux does what Linux does to set up and use interrupts.
func TestMSIXLinux(t *testing.T) {
	v := newVectorBench(t, 3)
	v.setControl(msixEnable | msixMaskAll)
	for n := range uint64(3) {
		v.table(n*16+12, msixMasked)
	}
	v.table(0, 0xfee0_0000, 0, 0x31)
	v.table(16, 0xfee0_1000, 0, 0x32)
	v.table(12, 0)
	v.setControl(msixEnable)
	v.backend.expect(t, "enabling", "unmask 0 0xfee00000 0x31")
	v.Notify(0)
	v.Notify(1) // masked
	v.backend.expect(t, "interrupts", "fire 0")
	if got := v.pba(); got != 2 {
		t.Errorf("pending bits %#x, want 2", got)
	}
	v.table(16+12, 0)
	v.backend.expect(t, "unmasking a pending vector", "unmask 1 0xfee01000 0x32", "fire 1")
	if got := v.pba(); got != 0 {
		t.Errorf("pending bits %#x after delivery", got)
	}

	// Affinity: mask, change, unmask.
	v.table(12, msixMasked)
	v.table(0, 0xfee0_2000, 0, 0x41)
	v.table(12, 0)
	v.backend.expect(t, "moving a vector", "mask 0", "unmask 0 0xfee02000 0x41")
	v.table(12, 0)
	v.backend.expect(t, "unmasking what is unmasked")

	v.setControl(msixEnable | msixMaskAll)
	v.Notify(0)
	v.Notify(0)
	v.backend.expect(t, "masking the function", "mask 0", "mask 1")
	v.setControl(msixEnable)
	v.backend.expect(t, "unmasking the function", "unmask 0 0xfee02000 0x41", "fire 0", "unmask 1 0xfee01000 0x32")

	v.setControl(0)
	v.Notify(0)
	v.backend.expect(t, "switching off", "mask 0", "mask 1")
	v.setControl(msixEnable)
	v.backend.expect(t, "switching on again", "unmask 0 0xfee02000 0x41", "unmask 1 0xfee01000 0x32")
	v.table(12, msixMasked)
	v.Notify(0)
	v.setControl(0)
	v.setControl(msixEnable)
	if got := v.pba(); got != 0 {
		t.Errorf("pending bits %#x after switching off, want 0", got)
	}
	v.backend.expect(t, "switching off and on", "mask 0", "mask 1", "unmask 1 0xfee01000 0x32")
	for _, n := range []int{-1, 3, 0xffff} {
		v.Notify(n)
	}
	v.backend.expect(t, "vectors that there are not")
}

func TestMSIXMessageChangeWhileUnmasked(t *testing.T) {
	v := newVectorBench(t, 1)
	v.setControl(msixEnable)
	v.table(12, 0)
	v.backend.expect(t, "unmasking", "unmask 0 0x0 0x0")
	v.table(8, 0x31)
	v.mmio.Write(v.base, []byte{3, 0, 0xe0, 0xfe, 1, 0, 0, 0})
	v.backend.expect(t, "changing", "unmask 0 0x0 0x31", "unmask 0 0x1fee00000 0x31")
}

func TestMSIXTableAccess(t *testing.T) {
	v := newVectorBench(t, 2)
	v.table(16, 0xffff_ffff, 0x11, 0x22, 0xffff_ffff)
	tests := []struct {
		offset uint64
		size   int
		want   uint64
	}{
		{16, 8, 0x11_ffff_fffc},
		{24, 8, 0x1_0000_0022},
		{28, 4, 1},
		{18, 1, 0xff},
		{22, 4, 0x0022_0000}, // unaligned
		{30, 4, 0},           // over the end of the entry
		{32, 8, 0},           // behind the table
		{0x7fc, 4, 0},
		{0xff8, 8, 0},
	}
	for _, test := range tests {
		var d [8]byte
		v.mmio.Read(v.base+test.offset, d[:test.size])
		if got := binary.LittleEndian.Uint64(d[:]); got != test.want {
			t.Errorf("%d bytes at %d: %#x, want %#x", test.size, test.offset, got, test.want)
		}
	}
	before := v.save()
	for _, w := range []struct {
		offset uint64
		size   int
	}{{16, 1}, {16, 2}, {18, 4}, {20, 8}, {28, 8}, {32, 4}, {0x800, 8}} {
		v.mmio.Write(v.base+w.offset, make([]byte, w.size))
	}
	if after := v.save(); !reflect.DeepEqual(before, after) {
		t.Errorf("odd writes changed the table: %+v", after)
	}
}

func TestMSIXFailures(t *testing.T) {
	v := newVectorBench(t, 1)
	v.backend.fail = errors.New("no routes left")
	v.setControl(msixEnable)
	v.table(12, 0)
	v.Notify(0)
	v.backend.expect(t, "refused unmask", "unmask 0 0x0 0x0")
	if n, err := v.Failures(); n != 1 || !errors.Is(err, v.backend.fail) {
		t.Errorf("%d failures, last %v", n, err)
	}
	if v.pba() != 1 {
		t.Error("the interrupt of a vector that could not be unmasked is lost")
	}
	v.backend.fail = nil
	v.table(8, 0x31)
	v.backend.expect(t, "second try", "unmask 0 0x0 0x31", "fire 0")
}

func TestSoftwareVectors(t *testing.T) {
	var sent []devices.MSI
	s := NewSoftwareVectors(2, func(m devices.MSI) error { sent = append(sent, m); return nil })
	want := devices.MSI{Address: 0xfee0_0000, Data: 0x55}
	if err := errors.Join(s.Unmask(1, want), s.Fire(1), s.Mask(1)); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(sent, []devices.MSI{want}) {
		t.Errorf("sent %v", sent)
	}
	if s.Unmask(2, want) == nil {
		t.Error("unmasked a vector that there is not")
	}
}

// TestMSIXConcurrent masks and unmasks while a device interrupts: as many
// interrupts as fit arrive, the last one always.
func TestMSIXConcurrent(t *testing.T) {
	v := newVectorBench(t, 2)
	var mu sync.Mutex
	fired := 0
	v.MSIX.backend = NewSoftwareVectors(2, func(devices.MSI) error {
		mu.Lock()
		defer mu.Unlock()
		fired++
		return nil
	})
	v.setControl(msixEnable)
	var wg sync.WaitGroup
	for n := range 2 {
		wg.Go(func() {
			for range 2000 {
				v.Notify(n)
			}
		})
	}
	wg.Go(func() {
		for i := range uint32(1000) {
			v.table(12, i&1)
			v.table(16+12, i&1)
			v.pba()
		}
	})
	wg.Wait()
	v.table(12, 0)
	v.table(16+12, 0)
	if v.pba() != 0 || fired == 0 || fired > 4000 {
		t.Errorf("%d interrupts, pending %#x", fired, v.pba())
	}
	before := fired
	v.Notify(0)
	if fired != before+1 {
		t.Error("no interrupt at the end")
	}
}

func TestState(t *testing.T) {
	v := newVectorBench(t, 3)
	v.setControl(msixEnable)
	v.table(0, 0xfee0_0000, 0, 0x31, 0)
	v.table(16, 0xfee0_0000, 0, 0x32)
	v.Notify(1)
	v.write(v.slot, regBAR0+4, 4, 0xd000_0000)
	v.ports().out(0xcf8, 4, 0x8000_0004)

	other := newVectorBench(t, 3)
	other.setControl(msixEnable)
	other.table(32+12, 0)
	other.backend.expect(t, "before", "unmask 2 0x0 0x0")
	v.restoreInto(other.bench)
	other.backend.expect(t, "restore", "mask 2", "unmask 0 0xfee00000 0x31")
	other.base = 0xd000_0000
	if other.pba() != 2 {
		t.Errorf("pending bits %#x where the BAR was, want 2", other.pba())
	}
	other.table(16+12, 0)
	other.backend.expect(t, "unmasking what was pending", "unmask 1 0xfee00000 0x32", "fire 1")
}

func TestRestoreRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(*BusState)
		want   string
	}{
		{"version", func(s *BusState) { s.Version = 2 }, "version"},
		{"address", func(s *BusState) { s.Address = 1 }, "address"},
		{"function version", func(s *BusState) { s.Functions[1].Version = 0 }, "version"},
		{"MSI-X version", func(s *BusState) { s.Functions[1].MSIX.Version = 0 }, "version"},
		{"slot", func(s *BusState) { s.Functions[1].Slot = 32 }, "slot 32"},
		{"negative slot", func(s *BusState) { s.Functions[1].Slot = -1 }, "slot -1"},
		{"empty slot", func(s *BusState) { s.Functions[1].Slot = 7 }, "slot 7"},
		{"twice", func(s *BusState) { s.Functions = append(s.Functions, s.Functions[1]) }, "two functions"},
		{"missing", func(s *BusState) { s.Functions = s.Functions[:1] }, "nothing for net"},
		{"another device", func(s *BusState) { s.Functions[1].Config[2]++ }, "another device"},
		{"BAR bits", func(s *BusState) { s.Functions[1].Config[regBAR0+5] |= 8 }, "another device"},
		{"too long", func(s *BusState) { s.Functions[1].Config = make([]byte, ConfigSize+1) }, "4096"},
		{"no MSI-X", func(s *BusState) { s.Functions[1].MSIX = nil }, "not in both"},
		{"vectors", func(s *BusState) { s.Functions[1].MSIX.Vectors = nil }, "0 vectors"},
		{"alignment", func(s *BusState) { s.Functions[1].MSIX.Vectors[0].Address = 2 }, "aligned"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			v := newVectorBench(t, 3)
			s := v.bus.Save()
			test.change(&s)
			before := v.bus.Save()
			err := v.bus.Restore(s)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want one with %q", err, test.want)
			}
			if !reflect.DeepEqual(v.bus.Save(), before) {
				t.Error("a refused state changed the bus")
			}
		})
	}
}

// FuzzBus lets a guest do anything to configuration space, ports and tables of
// two functions, and then looks whether everything is still where it says.
func FuzzBus(f *testing.F) {
	f.Add([]byte{0x03, 1, regCommand, 2, 0, 0x03, 1, regBAR0 + 4, 0xff, 0xff, 0x82, 0, 12, 0, 0})
	f.Add([]byte{0x05, 1, 0x42, 0, 0xc0, 0x40, 1, 0, 0, 0, 0x84, 0, 0, 0xe0, 0xfe, 0xc0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, program []byte) {
		v := newVectorBench(t, 3)
		wide := v.add(testFunction(t, "wide", BAR{Index: 0, Size: 8192, Wide: true}, BAR{Index: 5, Size: 32}))
		p := v.ports()
		v.backend.calls = nil
		for ; len(program) >= 5; program = program[5:] {
			op, size := program[0]>>6, 1<<(program[0]>>1&3)
			write := program[0]&1 != 0
			offset := uint64(program[1])<<8 | uint64(program[2])
			data := []byte{program[3], program[4], program[3], program[4], program[3], program[4], program[3], program[4]}[:size]
			bus, at := &v.mmio, ecamAddr(int(offset>>8%3), int(offset&0xff))
			switch op {
			case 1:
				v.Notify(int(program[1] % 4))
				continue
			case 2:
				at = v.bus.functions[v.slot].barBase(1) + offset%4096
			case 3:
				bus, at = &p.Bus, 0xcf6+offset%12
			}
			if write {
				bus.Write(at, data)
			} else {
				bus.Read(at, data)
			}
		}
		for _, slot := range []int{v.slot, wide} {
			fn := v.bus.functions[slot]
			for i := range fn.bars {
				bar := &fn.bars[i]
				if want := fn.wanted(i); bar.mapped && bar.base != want {
					t.Errorf("slot %d BAR %d is at %#x, the register says %#x", slot, i, bar.base, want)
				}
				if bar.mapped && !v.at(bar.base) {
					t.Errorf("slot %d BAR %d is not at %#x", slot, i, bar.base)
				}
			}
		}
		for i := range v.vectors {
			vec := &v.vectors[i]
			if open := vec.enabled && !vec.maskAll && !vec.masked; vec.armed != open || open && vec.pending {
				t.Errorf("vector %d: %+v", i, vec.message())
			}
		}
		other := newVectorBench(t, 3)
		other.add(testFunction(t, "wide", BAR{Index: 0, Size: 8192, Wide: true}, BAR{Index: 5, Size: 32}))
		v.restoreInto(other.bench)
	})
}
