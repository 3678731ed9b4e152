package pci

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/godwit-vmm/godwit/devices"
)

// ports are the eight ports of the configuration mechanism on a bus of ports.
type ports struct {
	t testing.TB
	devices.Bus
}

func (b *bench) ports() *ports {
	b.t.Helper()
	p := &ports{t: b.t}
	if err := p.Map("PCI configuration", devices.PCIConfigPort, devices.PCIConfigPorts, b.bus.ConfigPorts()); err != nil {
		b.t.Fatal(err)
	}
	return p
}

func (p *ports) in(port uint64, size int) uint32 {
	var d [4]byte
	p.Read(port, d[:size])
	return binary.LittleEndian.Uint32(d[:])
}

func (p *ports) out(port uint64, size int, v uint32) {
	var d [4]byte
	binary.LittleEndian.PutUint32(d[:], v)
	p.Write(port, d[:size])
}

// TestLinuxFindsMechanism1 does what Linux does to decide on the mechanism.
func TestLinuxFindsMechanism1(t *testing.T) {
	p := newBench(t).ports()
	p.out(0xcfb, 1, 0x01)
	p.out(0xcf8, 4, 0x8000_0000)
	if got := p.in(0xcf8, 4); got != 0x8000_0000 {
		t.Fatalf("CONFIG_ADDRESS reads %#x", got)
	}
	p.out(0xcf8, 4, 0x8000_0000|regClass&^3)
	if got := p.in(0xcfc+regClass&3+1, 2); got != 0x0600 {
		t.Errorf("class of 00:00.0 is %#x, want a host bridge", got)
	}
}

func TestConfigPorts(t *testing.T) {
	b := newBench(t)
	slot := b.add(testFunction(t, "net"))
	p := b.ports()
	at := func(slot, reg int) uint32 { return 1<<31 | uint32(slot)<<11 | uint32(reg) }
	tests := []struct {
		name    string
		address uint32
		port    uint64
		size    int
		want    uint32
	}{
		{"ID", at(slot, 0), 0xcfc, 4, 0x1041_1af4},
		{"device ID", at(slot, 0), 0xcfe, 2, 0x1041},
		{"byte", at(slot, 0), 0xcff, 1, 0x10},
		{"unaligned word", at(slot, 0), 0xcfd, 2, 0x411a},
		{"low bits of the register do not count", at(slot, 3), 0xcfc, 1, 0xf4},
		{"disabled", at(slot, 0) &^ (1 << 31), 0xcfc, 4, 0xffff_ffff},
		{"empty slot", at(31, 0), 0xcfc, 4, 0xffff_ffff},
		{"other function", at(slot, 0) | 1<<8, 0xcfc, 4, 0xffff_ffff},
		{"other bus", at(slot, 0) | 1<<16, 0xcfc, 4, 0xffff_ffff},
		{"over the end of the ports", at(slot, 0), 0xcfe, 4, 0xffff_1041},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p.out(0xcf8, 4, test.address)
			got := p.in(test.port, test.size)
			if got != test.want {
				t.Errorf("reads %#x, want %#x", got, test.want)
			}
		})
	}
	p.out(0xcf8, 4, at(slot, regInterruptLine))
	p.out(0xcfc, 1, 0x5a)
	p.out(0xcfd, 1, 0x5a) // interrupt pin: read-only
	if got := b.read(slot, regInterruptLine, 2); got != 0x005a {
		t.Errorf("interrupt line and pin %#x, want 0x5a", got)
	}
	p.out(0xcf8, 4, 0xffff_ffff)
	if got := p.in(0xcf8, 4); got != addressKept {
		t.Errorf("CONFIG_ADDRESS keeps %#x, want %#x", got, uint32(addressKept))
	}
}

// noted is a Handler that notes what is written.
type noted struct{ writes []byte }

func (n *noted) Read(_ uint64, data []byte)       { data[0] = 0x42 }
func (n *noted) Write(offset uint64, data []byte) { n.writes = append(n.writes, data...) }

func TestConfigPortsLeaveResetRegister(t *testing.T) {
	reset := &noted{}
	b := newBench(t)
	b.bus.config.Reset = reset
	p := b.ports()
	p.out(0xcf8, 4, 0x8000_0600)
	p.out(0xcf9, 2, 0x06) // a word is not the register's
	p.out(0xcf8, 2, 0x0600)
	if len(reset.writes) != 0 {
		t.Fatalf("the reset register got %v", reset.writes)
	}
	p.out(0xcf9, 1, 0x06)
	if !bytes.Equal(reset.writes, []byte{6}) || p.in(0xcf9, 1) != 0x42 {
		t.Errorf("the reset register got %v", reset.writes)
	}
	if got := p.in(0xcf8, 4); got != 0x8000_0600 {
		t.Errorf("CONFIG_ADDRESS is %#x after narrow accesses", got)
	}
	for _, port := range []uint64{0xcf8, 0xcfa, 0xcfb} {
		if got := p.in(port, 1); got != 0xff {
			t.Errorf("byte at %#x reads %#x", port, got)
		}
	}
	b.bus.config.Reset = nil
	p.out(0xcf9, 1, 0x06)
	if got := p.in(0xcf9, 1); got != 0xff {
		t.Errorf("reset register that is not there reads %#x", got)
	}
}

func TestECAM(t *testing.T) {
	b := newBench(t)
	slot := b.add(testFunction(t, "net"))
	if got := b.read(slot, 0, 8); got != 0x1041_1af4 {
		t.Errorf("first 8 bytes %#x", got)
	}
	if got := b.read(slot, regSubsystemVendor, 4); got != 0x40_0000 {
		t.Errorf("subsystem %#x", got)
	}
	if got := b.read(slot, ConfigSize-4, 8); got != 0xffff_ffff_0000_0000 {
		t.Errorf("over the end of the space: %#x", got)
	}
	b.write(slot, ConfigSize-4, 8, ^uint64(0))
	if got := b.read(slot, ConfigSize-4, 4); got != 0 {
		t.Errorf("extended space took a write: %#x", got)
	}
	for _, reg := range []int{0, 0x100, 0xffc} {
		for _, slot := range []int{1, 31} {
			at := ecamAddr(slot, reg) | 1<<12
			if slot == 31 {
				at &^= 1 << 12
			}
			var d [4]byte
			b.mmio.Read(at, d[:])
			if binary.LittleEndian.Uint32(d[:]) != 0xffff_ffff {
				t.Errorf("nothing at %#x reads %#x", at, d)
			}
		}
	}
	if r, w := b.mmio.Unclaimed(); r != 0 || w != 0 {
		t.Errorf("empty slots count as stray: %d reads, %d writes", r, w)
	}
}

func TestHeaderIsReadOnly(t *testing.T) {
	b := newBench(t)
	slot := b.add(testFunction(t, "net"))
	before := make([]byte, ConfigSize)
	copy(before, b.bus.functions[slot].config[:])
	for reg := 0; reg < ConfigSize; reg += 8 {
		b.write(slot, reg, 8, ^uint64(0))
	}
	want := bytes.Clone(before)
	binary.LittleEndian.PutUint16(want[regCommand:], commandKept)
	want[regCacheLine], want[regInterruptLine] = 0xff, 0xff
	if got := b.bus.functions[slot].config[:]; !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("byte %#x is %#x, want %#x", i, got[i], want[i])
			}
		}
	}
}

func TestCapabilities(t *testing.T) {
	b := newBench(t)
	f := testFunction(t, "net")
	var reads, writes [][2]int
	if _, err := f.AddCapability(Capability{ID: CapabilityVendor, Body: []byte{1, 2, 3}}); err != nil {
		t.Fatal(err)
	}
	at, err := f.AddCapability(Capability{
		ID:       CapabilityVendor,
		Body:     []byte{4, 5, 6, 7, 8, 9},
		Writable: []byte{0, 0xf0, 0xff},
		BeforeRead: func(body []byte, offset, size int) {
			reads = append(reads, [2]int{offset, size})
			body[2]++
		},
		AfterWrite: func(body []byte, offset, size int) { writes = append(writes, [2]int{offset, size}) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if at != 0x48 {
		t.Errorf("second capability at %#x, want 0x48", at)
	}
	for _, c := range []Capability{
		{ID: 5, Body: make([]byte, 200)},
		{ID: 5, Body: []byte{1}, Writable: []byte{1, 1}},
	} {
		if _, err := f.AddCapability(c); err == nil {
			t.Errorf("added a capability of %d bytes with a mask of %d", len(c.Body), len(c.Writable))
		}
	}
	slot := b.add(f)
	if _, err := f.AddCapability(Capability{ID: 5}); err == nil {
		t.Error("added a capability to a function on a bus")
	}

	// Walk the list as a driver does.
	if b.read(slot, regStatus, 2)&statusCapabilities == 0 {
		t.Fatal("status says that there is no list")
	}
	var ids []uint64
	for next := int(b.read(slot, regCapabilities, 1)); next != 0; next = int(b.read(slot, next+1, 1)) {
		ids = append(ids, b.read(slot, next, 1))
		if len(ids) > 10 {
			t.Fatal("the list does not end")
		}
	}
	if len(ids) != 2 {
		t.Errorf("capabilities %v", ids)
	}
	reads = nil
	b.write(slot, at, 8, 0x0000_0000_ffff_00aa) // ID and pointer are read-only
	if got := b.read(slot, at, 8); got != 0x0908_0701_f504_0009 {
		t.Errorf("capability reads %#x", got)
	}
	if len(reads) != 1 || reads[0] != [2]int{0, 6} || len(writes) != 1 || writes[0] != [2]int{0, 6} {
		t.Errorf("hooks saw reads %v, writes %v", reads, writes)
	}
	b.read(slot, at+4, 1)
	b.read(slot, at, 2) // the header
	b.read(slot, at-4, 4)
	b.read(slot, at+8, 4)
	if len(reads) != 2 || reads[1] != [2]int{2, 1} {
		t.Errorf("hooks saw reads %v", reads)
	}
}
