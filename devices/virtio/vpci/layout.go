package vpci

import (
	"encoding/binary"

	"github.com/godwit-vmm/godwit/devices/pci"
	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/memory"
)

// Identity of the function (§4.1.2).
const (
	vendorID     = 0x1af4
	deviceIDBase = 0x1040
	// subsystemBase: a subsystem ID of 0x40 or more says that the device is
	// not transitional.
	subsystemBase = 0x40
	revision      = 1
)

// class is the PCI class of a kind of device, the same that QEMU has: guests
// sort devices into their lists by it.
func class(t virtio.DeviceType) uint32 {
	switch t {
	case virtio.TypeNet:
		return 0x020000 // Ethernet controller
	case virtio.TypeBlock:
		return 0x010000 // SCSI storage controller
	case virtio.TypeConsole, virtio.TypeVsock:
		return 0x078000 // other communication controller
	}
	return 0x00ff00 // other
}

// The registers lie in BAR 0, one structure to a page (§4.1.4): so a hypervisor
// or a driver in user space can treat each page in a way of its own. The BAR is
// a 32-bit one, because then every guest reaches it, firmware too, and there is
// room for hundreds below 4 GiB; it is not prefetchable, because reading the ISR
// status clears it. MSI-X is in BAR 1.
const (
	registersBAR = 0
	msixBAR      = 1

	commonPage = 0 * memory.PageSize
	isrPage    = 1 * memory.PageSize
	devicePage = 2 * memory.PageSize
	notifyPage = 3 * memory.PageSize
	barSize    = 4 * memory.PageSize

	// notifyMultiplier is the distance of two doorbells in bytes.
	notifyMultiplier = 4
)

// Types of vendor capabilities (§4.1.4).
const (
	capCommon = 1
	capNotify = 2
	capISR    = 3
	capDevice = 4
	capPCI    = 5
)

// Offsets in struct virtio_pci_cap (§4.1.4), without the two bytes that every
// capability starts with.
const (
	capLen    = 0
	capType   = 1
	capBAR    = 2
	capOffset = 6
	capLength = 10
	capBody   = 14
	// What follows in some: notify_off_multiplier, pci_cfg_data.
	capExtra = 14

	capHeader = 2
)

// addToPCI makes the PCI function.
func (f *Function) addToPCI() error {
	t := f.device.Type()
	f.pci = pci.NewFunction(pci.FunctionConfig{
		Name:     "virtio " + f.config.Name,
		VendorID: vendorID, DeviceID: deviceIDBase + uint16(t),
		SubsystemVendorID: vendorID, SubsystemID: subsystemBase + uint16(t),
		Class: class(t), Revision: revision,
	})
	err := f.pci.AddBAR(pci.BAR{Index: registersBAR, Size: barSize, Handler: (*registers)(f), Moved: f.moveDoorbells})
	if err != nil {
		return err
	}
	f.msix, err = f.pci.AddMSIX(pci.MSIXConfig{BAR: msixBAR, Vectors: NumVectors(f.device), Backend: f.config.Vectors})
	if err != nil {
		return err
	}
	// The device structure takes its page: how long a configuration space is
	// only the device knows, and behind its end are zeros.
	for _, c := range []pci.Capability{
		vendorCapability(capCommon, commonPage, commonSize),
		vendorCapability(capISR, isrPage, 1),
		vendorCapability(capDevice, devicePage, memory.PageSize),
		vendorCapability(capNotify, notifyPage, uint32(max(1, len(f.queues)))*notifyMultiplier, notifyMultiplier, 0, 0, 0),
		f.windowCapability(),
	} {
		if _, err := f.pci.AddCapability(c); err != nil {
			return err
		}
	}
	return nil
}

// vendorCapability is a capability for a structure in the BAR.
func vendorCapability(kind byte, offset, length uint32, extra ...byte) pci.Capability {
	body := make([]byte, capBody, capBody+len(extra))
	body[capType], body[capBAR] = kind, registersBAR
	binary.LittleEndian.PutUint32(body[capOffset:], offset)
	binary.LittleEndian.PutUint32(body[capLength:], length)
	body = append(body, extra...)
	body[capLen] = byte(capHeader + len(body))
	return pci.Capability{ID: pci.CapabilityVendor, Body: body}
}
