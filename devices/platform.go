package devices

// Where the parts of the platform are: ports, their number, and global system
// interrupts (the pins of the I/O APIC, which ACPI numbers from 0). The legacy
// parts are where every PC has them; the rest is told to the guest by ACPI.
const (
	COM1Port = 0x3f8
	COM1GSI  = 4
	COM2Port = 0x2f8
	COM2GSI  = 3
	// SerialPorts is how many ports a UART takes.
	SerialPorts = 8

	RTCPort  = 0x70
	RTCPorts = 2
	RTCGSI   = 8
	// RTCCentury is the CMOS index of the century, for the FADT.
	RTCCentury = 0x32

	// I8042Port to 0x64 hold the keyboard controller's two ports and, between
	// them, system control port B.
	I8042Port  = 0x60
	I8042Ports = 5

	// PMPort is the ACPI power management block (ACPI 6.5 §4.8), with these
	// registers in it.
	PMPort      = 0x600
	PMPorts     = 0x24
	PM1EventLen = 4
	PM1Control  = PMPort + 0x04
	PMTimer     = PMPort + 0x08
	GPE0        = PMPort + 0x20
	GPE0Len     = 4
	// SleepTypeOff is the SLP_TYP of the soft-off state, for the \_S5 package.
	SleepTypeOff = 5
	// SCIGSI is the system control interrupt: level triggered, active high.
	SCIGSI = 9

	// ResetPort takes ResetValue to reset the machine, as the FADT says.
	ResetPort  = 0xcf9
	ResetValue = 0x06

	// PVPanicPort is the ACPI device QEMU0001.
	PVPanicPort = 0x505

	// PCIConfigPort is PCI configuration mechanism #1: the address register
	// at 0xcf8, the data register at 0xcfc, and between them ResetPort.
	PCIConfigPort  = 0xcf8
	PCIConfigPorts = 8

	// IOAPICSize is the register window of the I/O APIC at memory.IOAPICStart.
	IOAPICSize = 0x1000
)
