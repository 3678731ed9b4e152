package machine

import (
	"github.com/godwit-vmm/godwit/bootloader"
	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/memory"
)

// pci64Size is the size of the window for 64-bit PCI base address registers.
const pci64Size = 64 << 30

// The ports that PCI base address registers may take, away from the legacy
// devices and the power management block.
const (
	pciPortStart = 0x1000
	pciPortSize  = 0xf000
)

// describe tells the boot loader where the devices of this package's machine
// are, so that the ACPI tables say the same.
func describe(cpus int, ram []memory.Range) bootloader.Platform {
	ids := make([]uint32, cpus)
	for i := range ids {
		ids[i] = uint32(i)
	}
	return bootloader.Platform{
		APICIDs: ids,
		LAPIC:   memory.LAPICStart,
		IOAPIC:  memory.IOAPICStart,
		ECAM:    memory.Range{Start: memory.ECAMStart, Size: memory.ECAMSize},
		PCIIO:   bootloader.PortRange{Base: pciPortStart, Size: pciPortSize},
		PCI32:   pci32Window(),
		PCI64:   pci64Window(ram),
		Power: bootloader.Power{
			PM1Event:    devices.PMPort,
			PM1Control:  devices.PM1Control,
			Timer:       devices.PMTimer,
			GPE0:        devices.GPE0,
			SCI:         devices.SCIGSI,
			ResetPort:   devices.ResetPort,
			ResetValue:  devices.ResetValue,
			SleepTypeS5: devices.SleepTypeOff,
		},
		Serial: []bootloader.Device{
			{Port: devices.COM1Port, GSI: devices.COM1GSI},
			{Port: devices.COM2Port, GSI: devices.COM2GSI},
		},
		RTC:     bootloader.Device{Port: devices.RTCPort, GSI: devices.RTCGSI},
		Pvpanic: devices.PVPanicPort,
	}
}

// pci32Window and pci64Window are where PCI base address registers may go.
func pci32Window() memory.Range {
	return memory.Range{Start: memory.PCIWindowStart, Size: uint64(memory.PCIWindowEnd - memory.PCIWindowStart)}
}

func pci64Window(ram []memory.Range) memory.Range {
	return memory.Range{Start: memory.PCI64Start(ram), Size: pci64Size}
}
