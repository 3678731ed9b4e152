package machine

import (
	"context"
	"errors"
	"io"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/devices/pci"
	"github.com/godwit-vmm/godwit/memory"
)

// addDevices makes the fixed devices of the platform and puts them on the
// buses.
func (m *Machine) addDevices() error {
	power := devices.Power{
		Off:   func() { m.finish(PoweredOff, nil) },
		Reset: m.reset,
		Panic: func(e devices.PanicEvent) {
			if e&devices.PanicHalted != 0 {
				m.finish(Panicked, nil)
			}
		},
	}
	m.console = m.serial(m.cfg.Console, devices.COM1GSI)
	m.channel = m.serial(m.cfg.Channel, devices.COM2GSI)
	m.pm = devices.NewPM(devices.PMConfig{Power: power, SCI: m.ioapic.Pin(devices.SCIGSI)})
	m.rtc = devices.NewRTC(devices.RTCConfig{IRQ: m.ioapic.Pin(devices.RTCGSI)})
	m.i8042 = devices.NewI8042(power)
	m.resetRegister = devices.NewResetRegister(power)
	ram := m.mem.Ranges()
	m.pci = pci.NewBus(pci.BusConfig{
		MMIO: m.mmio, RAM: ram, Window32: pci32Window(), Window64: pci64Window(ram),
		Reset: m.resetRegister,
	})

	err := errors.Join(
		m.ports.Map("COM1", devices.COM1Port, devices.SerialPorts, m.console),
		m.ports.Map("COM2", devices.COM2Port, devices.SerialPorts, m.channel),
		m.ports.Map("ACPI power management", devices.PMPort, devices.PMPorts, m.pm),
		m.ports.Map("RTC", devices.RTCPort, devices.RTCPorts, m.rtc),
		m.ports.Map("keyboard controller", devices.I8042Port, devices.I8042Ports, m.i8042),
		m.ports.Map("pvpanic", devices.PVPanicPort, 1, devices.NewPVPanic(power)),
		m.ports.Map("PCI configuration", devices.PCIConfigPort, devices.PCIConfigPorts, m.pci.ConfigPorts()),
		m.mmio.Map("PCI configuration", uint64(memory.ECAMStart), memory.ECAMSize, m.pci.ECAM()),
		m.mmio.Map("I/O APIC", uint64(memory.IOAPICStart), devices.IOAPICSize, m.ioapic),
	)
	if err != nil {
		return err
	}
	return m.addVirtioDevices()
}

func (m *Machine) serial(out io.Writer, gsi int) *devices.Serial {
	return devices.NewSerial(devices.SerialConfig{Out: out, IRQ: m.ioapic.Pin(gsi)})
}

// reset ends the run after a write to one of the reset registers. A guest that
// panicked left a mark before (see PanicWord).
func (m *Machine) reset() {
	const (
		resetFlag = memory.GPA(0x472) // BIOS data area: "soft reset flag"
		warm      = 0x1234
	)
	if m.cfg.tellsPanics() {
		if flag, err := m.mem.Uint16(resetFlag); err == nil && flag == warm {
			m.finish(Panicked, nil)
			return
		}
	}
	m.finish(Reset, nil)
}

// closeDevices ends what the devices run beside the processors.
func (m *Machine) closeDevices() error {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	if m.rtc != nil {
		m.rtc.Close()
	}
	for _, s := range []*devices.Serial{m.console, m.channel} {
		if s != nil {
			// A writer that failed or blocks is its owner's affair.
			_ = s.Close(ctx)
		}
	}
	return m.closeVirtio()
}
