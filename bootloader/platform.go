package bootloader

import (
	"fmt"

	"github.com/godwit-vmm/godwit/memory"
)

// Platform is the hardware that the kernel is told about: addresses, ports and
// interrupts of the machine's fixed devices. An interrupt is given as its
// global system interrupt (GSI), which is the pin of the I/O APIC.
type Platform struct {
	// APICIDs has the local APIC ID of each processor, the boot processor
	// first. IDs are below 255.
	APICIDs []uint32

	// LAPIC and IOAPIC are the register windows of the interrupt
	// controllers, below 4 GiB.
	LAPIC, IOAPIC memory.GPA

	// ECAM is the memory-mapped PCI configuration space of segment 0 from
	// bus 0 on, below 4 GiB; 1 MiB for each bus.
	ECAM memory.Range
	// PCIIO, PCI32 and PCI64 are what PCI base address registers may take
	// of the ports, of memory below 4 GiB and of memory above. An empty
	// window is left out.
	PCIIO        PortRange
	PCI32, PCI64 memory.Range

	// Power is the ACPI fixed hardware.
	Power Power
	// Serial are the 16550A UARTs, COM1 first.
	Serial []Device
	// RTC is the CMOS clock; its ports are the two from Port on. A zero
	// Port says that there is none.
	RTC Device
	// Pvpanic is the port on which the guest reports a crash (QEMU's
	// pvpanic interface), 0 for none.
	Pvpanic uint16
}

// PortRange is Size I/O ports from Base.
type PortRange struct {
	Base uint16
	Size uint32
}

// Device is a device on I/O ports with an edge-triggered interrupt.
type Device struct {
	Port uint16
	GSI  uint32
}

// Power is the fixed hardware of ACPI 6.5 §4.8: the port blocks of power
// management and the way to reset. Its interrupt, the SCI, is level-triggered
// and active high.
type Power struct {
	PM1Event   uint16 // PM1a_EVT_BLK: status and enable, 2 ports each
	PM1Control uint16 // PM1a_CNT_BLK: 2 ports
	Timer      uint16 // PM_TMR_BLK: 4 ports, a 32-bit counter
	GPE0       uint16 // GPE0_BLK: 2 ports of status, 2 of enable; 0 for none
	SCI        uint16 // GSI of the system control interrupt, 0 to 15
	// ResetPort resets the machine when ResetValue is written to it.
	ResetPort  uint16
	ResetValue uint8
	// SleepTypeS5 is the SLP_TYP value (0 to 7) that powers the machine off.
	SleepTypeS5 uint8
}

const below4G = memory.HighStart

func (p *Platform) check() error {
	if err := checkAPICIDs(p.APICIDs); err != nil {
		return err
	}
	if p.LAPIC >= below4G || p.IOAPIC >= below4G {
		return fmt.Errorf("APICs at %#x and %#x: want addresses below 4 GiB", uint64(p.LAPIC), uint64(p.IOAPIC))
	}
	low := memory.Range{Start: 0, Size: uint64(below4G)}
	if w := p.ECAM; w.Size == 0 || w.Size%ecamBusSize != 0 || w.Size > maxBuses*ecamBusSize || !low.Contains(w.Start, w.Size) {
		return fmt.Errorf("ECAM of %#x bytes at %#x: want 1 MiB for each of 1 to %d buses, below 4 GiB", w.Size, uint64(w.Start), maxBuses)
	}
	if w := p.PCI32; !low.Contains(w.Start, w.Size) {
		return fmt.Errorf("PCI window of %#x bytes at %#x: want it below 4 GiB", w.Size, uint64(w.Start))
	}
	if w := p.PCI64; w.End() < w.Start {
		return fmt.Errorf("PCI window of %#x bytes at %#x: past the end of the address space", w.Size, uint64(w.Start))
	}
	// All ports together would not leave room for the fixed devices, nor
	// fit the descriptor's 16-bit length.
	if w := p.PCIIO; w.Size >= 1<<16 || uint32(w.Base)+w.Size > 1<<16 {
		return fmt.Errorf("PCI window of %#x ports at %#x: want less than 0x10000, below port 0x10000", w.Size, w.Base)
	}
	if p.Power.SCI > maxISA {
		return fmt.Errorf("SCI on GSI %d: want an ISA interrupt, 0 to %d", p.Power.SCI, maxISA)
	}
	if p.Power.SleepTypeS5 > maxSleepType {
		return fmt.Errorf("sleep type %d of S5: want 0 to %d", p.Power.SleepTypeS5, maxSleepType)
	}
	return nil
}

func checkAPICIDs(ids []uint32) error {
	if len(ids) == 0 {
		return fmt.Errorf("no processors")
	}
	var seen [maxAPICID]bool
	for _, id := range ids {
		if id >= maxAPICID {
			return fmt.Errorf("APIC ID %d: the limit is %d", id, maxAPICID-1)
		}
		if seen[id] {
			return fmt.Errorf("APIC ID %d appears twice", id)
		}
		seen[id] = true
	}
	return nil
}

const (
	// maxAPICID bounds the IDs that an xAPIC MADT entry holds; 255 is the
	// broadcast (ACPI 6.5 §5.2.12.2).
	maxAPICID = 255
	// ecamBusSize is the configuration space of one bus: 32 devices of 8
	// functions of 4 KiB.
	ecamBusSize  = 1 << 20
	maxBuses     = 256
	maxISA       = 15
	maxSleepType = 7 // SLP_TYP has three bits
)
