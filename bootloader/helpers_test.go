package bootloader

import (
	"bytes"
	"testing"

	"github.com/godwit-vmm/godwit/memory"
)

// testPlatform is a complete machine with two processors.
func testPlatform() Platform {
	return Platform{
		APICIDs: []uint32{0, 1},
		LAPIC:   memory.LAPICStart,
		IOAPIC:  memory.IOAPICStart,
		ECAM:    memory.Range{Start: memory.ECAMStart, Size: memory.ECAMSize},
		PCIIO:   PortRange{Base: 0x1000, Size: 0xf000},
		PCI32:   memory.Range{Start: memory.PCIWindowStart, Size: uint64(memory.PCIWindowEnd - memory.PCIWindowStart)},
		PCI64:   memory.Range{Start: 8 << 30, Size: 64 << 30},
		Power: Power{
			PM1Event: 0x600, PM1Control: 0x604, Timer: 0x608, GPE0: 0x620,
			SCI: 9, ResetPort: 0xcf9, ResetValue: 6, SleepTypeS5: 5,
		},
		Serial:  []Device{{0x3f8, 4}, {0x2f8, 3}},
		RTC:     Device{0x70, 8},
		Pvpanic: 0x505,
	}
}

// testMemory is guest RAM that lives as long as the test.
func testMemory(t testing.TB, size uint64) *memory.Guest {
	t.Helper()
	mem, err := memory.New(memory.Options{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mem.Close(); err != nil {
			t.Error(err)
		}
	})
	return mem
}

// testFile is a file with the given content.
func testFile(name string, content []byte) *File {
	return &File{Name: name, Size: int64(len(content)), Content: bytes.NewReader(content)}
}

// read returns a copy of guest memory.
func read(t testing.TB, mem *memory.Guest, gpa memory.GPA, n uint64) []byte {
	t.Helper()
	p := make([]byte, n)
	if err := mem.Read(gpa, p); err != nil {
		t.Fatal(err)
	}
	return p
}
