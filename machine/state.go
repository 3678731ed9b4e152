package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/devices/pci"
	"github.com/godwit-vmm/godwit/devices/virtio/vpci"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/vcpu"
)

// stateVersion is the version of State that this program writes and reads.
const stateVersion = 1

// State is all of a machine that a guest could notice, but for its memory.
type State struct {
	Version uint32
	CPUs    []*vcpu.State
	// Clock is kvmclock at the time of the save. Its Realtime is there whether or
	// not the flags say so, but for states of older versions of this program.
	Clock  kvm.ClockData
	IOAPIC devices.IOAPICState
	// Console and Channel are the serial ports.
	Console, Channel devices.SerialState
	PM               devices.PMState
	RTC              devices.RTCState
	I8042            devices.I8042State
	Reset            devices.ResetRegisterState
	PCI              pci.BusState
	// Virtio has the devices in the order in which the machine adds them.
	Virtio []VirtioState

	// advance is set by AdvanceClock.
	advance bool
}

// VirtioState is a saved virtio device with its transport.
type VirtioState struct {
	// Name is what messages call the device.
	Name      string
	Transport vpci.State
	// Device is the State of the device's own package, as JSON.
	Device json.RawMessage
}

// Save reads the state of a paused machine.
//
// The devices were stopped before (see Pause), so their last interrupts have
// reached the local APICs. The processors are read before the clock: a guest that
// is restored finds kvmclock not behind what it may have computed from its TSC.
func (m *Machine) Save() (*State, error) {
	s := &State{
		Version: stateVersion,
		IOAPIC:  m.ioapic.Save(), Console: m.console.Save(), Channel: m.channel.Save(),
		PM: m.pm.Save(), RTC: m.rtc.Save(), I8042: m.i8042.Save(), Reset: m.resetRegister.Save(),
		PCI: m.pci.Save(),
	}
	for _, v := range m.virtio {
		state, err := v.saved()
		if err != nil {
			return nil, fmt.Errorf("save %s: %w", v.name, err)
		}
		s.Virtio = append(s.Virtio, state)
	}
	msrs, err := m.savedMSRs()
	if err != nil {
		return nil, err
	}
	for _, v := range m.cpus {
		state, err := v.Save(msrs)
		if err != nil {
			return nil, err
		}
		s.CPUs = append(s.CPUs, state)
	}
	if s.Clock, err = m.saveClock(); err != nil {
		return nil, err
	}
	return s, nil
}

// savedMSRs is KVM's list of what a machine has to keep.
func (m *Machine) savedMSRs() ([]uint32, error) {
	if m.msrs != nil {
		return m.msrs, nil
	}
	var err error
	m.msrs, err = m.sys.MSRIndexList()
	return m.msrs, err
}

// restore puts a machine that has not run into a saved state. The order is that
// of vcpu.State: KVM's own parts first; then the clock; then the devices, whose
// interrupt lines and routes go to what is there by then. The virtio devices stay
// paused until Run.
func (m *Machine) restore(s *State) error {
	if err := devices.CheckVersion("machine", s.Version, stateVersion); err != nil {
		return err
	}
	if err := m.matches(s); err != nil {
		return err
	}
	if err := s.moveClock(time.Now()); err != nil {
		return err
	}
	for i, v := range m.cpus {
		if err := v.Restore(s.CPUs[i]); err != nil {
			return err
		}
	}
	if err := m.setClock(s); err != nil {
		return err
	}
	err := errors.Join(
		m.ioapic.Restore(s.IOAPIC),
		m.console.Restore(s.Console), m.channel.Restore(s.Channel),
		m.pm.Restore(s.PM), m.rtc.Restore(s.RTC),
		m.i8042.Restore(s.I8042), m.resetRegister.Restore(s.Reset),
		m.pci.Restore(s.PCI),
	)
	if err != nil {
		return err
	}
	for i, v := range m.virtio {
		if err := v.restored(&s.Virtio[i]); err != nil {
			return err
		}
	}
	return nil
}

// matches compares the parts of the machine with those that the state has.
func (m *Machine) matches(s *State) error {
	if len(s.CPUs) != len(m.cpus) {
		return fmt.Errorf("the saved machine has %d CPUs, this one %d", len(s.CPUs), len(m.cpus))
	}
	for i, c := range s.CPUs {
		if c == nil {
			return fmt.Errorf("nothing is saved of CPU %d", i)
		}
	}
	if len(s.Virtio) != len(m.virtio) {
		return fmt.Errorf("the saved machine has %d virtio devices, this one %d: give it the devices that it had", len(s.Virtio), len(m.virtio))
	}
	for i, v := range m.virtio {
		if s.Virtio[i].Name != v.name {
			return fmt.Errorf("virtio device %d of the saved machine is %q, of this one %q: give it the devices that it had", i, s.Virtio[i].Name, v.name)
		}
	}
	return nil
}

func (v *virtioFunction) saved() (VirtioState, error) {
	s := VirtioState{Name: v.name, Transport: v.function.Save()}
	var err error
	s.Device, err = v.save()
	return s, err
}

func (v *virtioFunction) restored(s *VirtioState) error {
	if err := v.restore(s.Device); err != nil {
		return fmt.Errorf("restore %s: %w", v.name, err)
	}
	return v.function.Restore(s.Transport)
}
