// Package pci is the PCI bus of the platform: one bus, no bridges but the host
// bridge, functions with 4 KiB of configuration space, memory BARs and MSI-X.
// Interrupts are MSI-X only; no function has an interrupt pin.
//
// A device makes a Function, gives it BARs and capabilities, and adds it to a
// Bus. The guest reaches the configuration space through Bus.ConfigPorts and
// Bus.ECAM, and the BARs through the devices.Bus for MMIO, on which they are
// mapped where the guest put them and while it has memory decoding enabled.
//
// References are to the PCI Local Bus Specification 3.0.
package pci

import "errors"

// Slots is the number of device slots on the bus. Slot 0 has the host bridge.
const Slots = 32

// ConfigSize is the size of a function's configuration space in bytes; the
// part behind the first 256 is reached through ECAM only.
const ConfigSize = 4096

// Registers of the type 0 configuration header (§6.1).
const (
	regVendorID        = 0x00
	regDeviceID        = 0x02
	regCommand         = 0x04
	regStatus          = 0x06
	regRevision        = 0x08
	regClass           = 0x09
	regCacheLine       = 0x0c
	regBAR0            = 0x10
	regSubsystemVendor = 0x2c
	regSubsystemID     = 0x2e
	regCapabilities    = 0x34
	regInterruptLine   = 0x3c
	regFirstCapability = 0x40

	bars       = 6
	legacySize = 256 // where capabilities must lie
)

const (
	commandMemory = 1 << 1
	// commandKept are the bits that drivers set and read back: memory
	// decoding, bus master, parity and SERR reporting, INTx off. There is
	// no I/O decoding because there are no I/O BARs.
	commandKept        = commandMemory | 1<<2 | 1<<6 | 1<<8 | 1<<10
	statusCapabilities = 1 << 4

	barWide         = 2 << 1 // 64-bit memory
	barPrefetchable = 1 << 3
	barFlags        = 0xf
)

// Capability IDs.
const (
	CapabilityVendor = 0x09
	CapabilityMSIX   = 0x11
)

// ErrFull is wrapped by the error of adding what there is no place for.
var ErrFull = errors.New("no place left")
