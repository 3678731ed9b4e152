package bootloader

import (
	"fmt"

	"github.com/godwit-vmm/godwit/bootloader/aml"
)

// dsdt declares the devices that cannot be probed for (ACPI 6.5 §5.2.11.1).
// Each device is a function that returns its declaration; a new device is a
// new function and a line here.
func dsdt(p *Platform) []byte {
	devices := []aml.Term{pciRoot(p), motherboard(p)}
	for i, s := range p.Serial {
		devices = append(devices, serialPort(i+1, s))
	}
	if p.RTC.Port != 0 {
		devices = append(devices, clock(p.RTC))
	}
	if p.Pvpanic != 0 {
		devices = append(devices, pvpanic(p.Pvpanic))
	}
	devices = append(devices, generationID())
	body := aml.Scope(`\_SB`, devices...)
	body = append(body, generationChanged()...)
	body = append(body, powerOff(p.Power.SleepTypeS5)...)
	// From revision 2 on integers have 64 bits.
	return table("DSDT", 2, body)
}

// powerOff is the soft-off state: what to write to SLP_TYP (ACPI 6.5 §7.4.2).
func powerOff(sleepType uint8) aml.Term {
	t := aml.Integer(uint64(sleepType))
	return aml.Name(`\_S5`, aml.Package(t, t, aml.Integer(0), aml.Integer(0)))
}

const (
	hidPCIeRoot    = "PNP0A08"
	hidPCIRoot     = "PNP0A03"
	hidMotherboard = "PNP0C02"
	hidSerial      = "PNP0501"
	hidClock       = "PNP0B00"
	hidPvpanic     = "QEMU0001"
	hidGeneration  = "GDWT0001"
	cidGeneration  = "VM_Gen_Counter" // which drivers look for
)

// device declares a device with an EISA ID.
func device(name, hid string, uid int, terms ...aml.Term) aml.Term {
	id := []aml.Term{
		aml.Name("_HID", aml.EISAID(hid)),
		aml.Name("_UID", aml.Integer(uint64(uid))),
	}
	return aml.Device(name, append(id, terms...)...)
}

// pciRoot is the PCI Express host bridge. It has no _PRT: functions signal by
// MSI-X and have no interrupt pins.
func pciRoot(p *Platform) aml.Term {
	const configPort, configPorts = 0xcf8, 8
	resources := []aml.Resource{
		aml.BusWindow(0, p.lastBus()),
		aml.IO(configPort, configPorts),
	}
	if w := p.PCIIO; w.Size > 0 {
		resources = append(resources, aml.IOWindow(w.Base, uint16(uint32(w.Base)+w.Size-1)))
	}
	if w := p.PCI32; w.Size > 0 {
		resources = append(resources, aml.MemoryWindow32(uint32(w.Start), uint32(w.End()-1)))
	}
	if w := p.PCI64; w.Size > 0 {
		resources = append(resources, aml.MemoryWindow64(uint64(w.Start), uint64(w.End()-1)))
	}
	return device("PCI0", hidPCIeRoot, 0,
		aml.Name("_CID", aml.EISAID(hidPCIRoot)),
		aml.Name("_SEG", aml.Integer(0)),
		aml.Name("_BBN", aml.Integer(0)),
		aml.Name("_CRS", aml.Resources(resources...)),
		pciControl(),
	)
}

// pciControl is the _OSC method by which the kernel asks for control of PCI
// Express features (PCI Firmware Specification 3.3 §4.5.1, ACPI 6.5 §6.2.11).
// It grants what functions on the root bus can have.
func pciControl() aml.Term {
	const (
		pme, aer, capability = 1 << 2, 1 << 3, 1 << 4
		granted              = pme | aer | capability

		unknownUUID, masked = 1 << 2, 1 << 4
	)
	status, control := aml.Path("STAT"), aml.Path("CTRL")
	request := aml.Arg(3)
	return aml.Method("_OSC", 4, true,
		aml.CreateDWordField(request, 0, "STAT"),
		aml.If(aml.Equal(aml.Arg(0), aml.UUID(0x33db4d5b, 0x1ff7, 0x401c, 0x9657, 0x7441c03dd766)),
			aml.CreateDWordField(request, 8, "CTRL"),
			aml.If(aml.And(control, aml.Integer(^uint64(granted)&0xffff_ffff), aml.NoTarget()),
				aml.Or(status, aml.Integer(masked), status),
			),
			aml.And(control, aml.Integer(granted), control),
		),
		aml.Else(
			aml.Or(status, aml.Integer(unknownUUID), status),
		),
		aml.Return(request),
	)
}

// motherboard reserves the memory-mapped configuration space, without which
// Linux does not use it.
func motherboard(p *Platform) aml.Term {
	return device("MBRD", hidMotherboard, 0,
		aml.Name("_CRS", aml.Resources(aml.Memory32(uint32(p.ECAM.Start), uint32(p.ECAM.Size)))),
	)
}

// serialPort is a 16550A UART, COM1 being number 1.
func serialPort(number int, d Device) aml.Term {
	const ports = 8
	return device(fmt.Sprintf("COM%d", number), hidSerial, number,
		aml.Name("_CRS", aml.Resources(aml.IO(d.Port, ports), aml.Interrupt(d.GSI))),
	)
}

// clock is the CMOS real-time clock.
func clock(d Device) aml.Term {
	const ports = 2
	return device("RTC", hidClock, 0,
		aml.Name("_CRS", aml.Resources(aml.IO(d.Port, ports), aml.Interrupt(d.GSI))),
	)
}

// pvpanic is the port by which the guest tells of a crash. Its ID is too long
// for an EISA ID.
func pvpanic(port uint16) aml.Term {
	const presentAndWorking = 0xf // ACPI 6.5 §6.3.7
	return aml.Device("PEVT",
		aml.Name("_HID", aml.String(hidPvpanic)),
		aml.Name("_STA", aml.Integer(presentAndWorking)),
		aml.Name("_CRS", aml.Resources(aml.IO(port, 1))),
	)
}

// generationID says where the virtual machine generation ID is: a number that is
// another one whenever the machine is restored, so that what must be unique, such as
// the state of random number generators, is made anew.
func generationID() aml.Term {
	low, high := uint64(GenerationIDAddr)&0xffff_ffff, uint64(GenerationIDAddr)>>32
	return aml.Device(generationDevice,
		aml.Name("_HID", aml.String(hidGeneration)),
		aml.Name("_CID", aml.String(cidGeneration)),
		aml.Name("_DDN", aml.String(cidGeneration)),
		aml.Name("ADDR", aml.Package(aml.Integer(low), aml.Integer(high))),
	)
}

const generationDevice = "VGEN"

// generationChanged handles the general-purpose event.
func generationChanged() aml.Term {
	const changed = 0x80
	return aml.Scope(`\_GPE`,
		aml.Method(fmt.Sprintf("_E%02X", GenerationEvent), 0, false,
			aml.Notify(aml.Path(`\_SB.`+generationDevice), changed),
		),
	)
}

// lastBus is the highest bus number whose configuration space is mapped.
func (p *Platform) lastBus() uint8 { return uint8(p.ECAM.Size/ecamBusSize - 1) }
