package micro

import (
	"encoding/binary"
	"testing"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/devices/pci"
	"github.com/godwit-vmm/godwit/memory"
)

// nothing is a window without registers.
type nothing struct{}

func (nothing) Read(uint64, []byte)  {}
func (nothing) Write(uint64, []byte) {}

// TestBARsOutOfReach checks what becomes of BARs whose addresses the program's page
// tables do not reach, and of those that it leaves alone.
func TestBARsOutOfReach(t *testing.T) {
	window := memory.Range{Start: 0xc000_0000, Size: 0x2_0000}
	g, bus := newPCIGuest(t, program(t)(Block{Driver: Driver{Stop: AnyStop()}, Size: 512, Requests: 1}.ELF()), pci.BusConfig{
		Window32: window, Window64: memory.Range{Start: 64 << 30, Size: 1 << 30},
	})
	f := pci.NewFunction(pci.FunctionConfig{Name: "disk", VendorID: virtioVendor, DeviceID: virtioIDBase + uint16(blockDevice)})
	for _, b := range []pci.BAR{
		{Index: 0, Size: 0x4000},
		{Index: 1, Size: 0x20_0000, Wide: true}, // too large for the lower window
		{Index: 3, Size: 0x40_0000, Wide: true},
		{Index: 5, Size: 0x4000},
	} {
		b.Handler = nothing{}
		g.must(f.AddBAR(b))
	}
	slot, err := bus.Add(f)
	g.must(err)
	if r := g.run(); r.Status != StatusNoRegions {
		t.Errorf("status %d: %v, want a device without structures", r.Status, r.Err())
	}
	for i, want := range []uint32{0xc000_0000, 0xd800_0004, 0, 0xd840_0004, 0, 0xc000_4000} {
		address := binary.LittleEndian.AppendUint32(nil, 1<<31|uint32(slot)<<11|uint32(pciBAR0+4*i))
		g.ports.Write(devices.PCIConfigPort, address)
		var got [4]byte
		g.ports.Read(devices.PCIConfigPort+4, got[:])
		if v := binary.LittleEndian.Uint32(got[:]); v != want {
			t.Errorf("BAR %d is %#x, want %#x", i, v, want)
		}
	}
}
