package machine

import (
	"encoding/json"
	"errors"
	"io"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/rng"
	"github.com/godwit-vmm/godwit/devices/virtio/vpci"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/statejson"
)

// virtioDevice is a device that the machine owns.
type virtioDevice interface {
	virtio.Device
	io.Closer
}

// savedDevice is a device whose State is an S.
type savedDevice[S any] interface {
	virtioDevice
	Save() S
	Restore(S) error
}

// virtioFunction is a virtio device with its transport and its interrupts.
type virtioFunction struct {
	name     string
	device   virtioDevice
	function *vpci.Function
	vectors  *vectors
	// save and restore are for the device's own State, as JSON.
	save    func() (json.RawMessage, error)
	restore func(json.RawMessage) error
}

// addVirtioDevices makes the devices that the configuration asks for. The order
// decides their slots on the PCI bus: new kinds go to the end.
func (m *Machine) addVirtioDevices() error {
	for _, add := range []func() error{
		m.addRNG, m.addDisks, m.addNets, m.addVsock, m.addBalloon, m.addHVC,
	} {
		if err := add(); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) addRNG() error {
	if m.cfg.NoRNG {
		return nil
	}
	d, err := rng.New(rng.Config{})
	if err != nil {
		return err
	}
	_, err = addVirtio(m, "rng", d)
	return err
}

// addVirtio puts a device on the PCI bus. The name is for messages. The machine
// closes the device when it is closed itself, also after an error.
func addVirtio[S any](m *Machine, name string, d savedDevice[S]) (*vpci.Function, error) {
	v := &virtioFunction{
		name: name, device: d,
		save: func() (json.RawMessage, error) { return json.Marshal(d.Save()) },
		restore: func(saved json.RawMessage) error {
			var s S
			if err := statejson.Unmarshal(saved, &s); err != nil {
				return err
			}
			return d.Restore(s)
		},
	}
	m.virtio = append(m.virtio, v)
	var err error
	if v.vectors, err = m.router.newVectors(vpci.NumVectors(d)); err != nil {
		return nil, err
	}
	bells, err := newDoorbells(m.vm)
	if err != nil {
		return nil, err
	}
	v.function, err = vpci.New(vpci.Config{
		Name: name, Device: raising{d, m}, Mem: m.mem, Vectors: v.vectors, Doorbells: bells, Warn: m.cfg.Warn,
	})
	if err != nil {
		return nil, err
	}
	_, err = m.pci.Add(v.function.PCI())
	return v.function, err
}

// virtqueues is the number of queues of all devices.
func (m *Machine) virtqueues() int {
	n := 0
	for _, v := range m.virtio {
		n += len(v.device.QueueSizes())
	}
	return n
}

// close stops the device first: what it runs may use all the rest.
func (v *virtioFunction) close() error {
	var errs []error
	if v.function != nil {
		errs = append(errs, v.function.Close())
	}
	errs = append(errs, v.device.Close())
	if v.vectors != nil {
		errs = append(errs, v.vectors.close())
	}
	return errors.Join(errs...)
}

// pauseVirtio returns when no device touches guest memory any more. All
// processors are parked: what they would still ask for is not waited for.
func (m *Machine) pauseVirtio() {
	for _, v := range m.virtio {
		v.function.Pause()
	}
}

func (m *Machine) resumeVirtio() {
	for _, v := range m.virtio {
		v.function.Resume()
	}
}

func (m *Machine) closeVirtio() error {
	var errs []error
	for _, v := range m.virtio {
		errs = append(errs, v.close())
	}
	m.virtio = nil
	return errors.Join(errs...)
}

// doorbells has KVM signal the eventfds of the queues.
type doorbells struct {
	vm *kvm.VM
	// length of the writes in bytes. 0 is any: the kernel then need not
	// decode the instruction (KVM_FAST_MMIO_BUS).
	length int
}

func newDoorbells(vm *kvm.VM) (*doorbells, error) {
	anyLength, err := vm.CheckExtension(kvm.KVM_CAP_IOEVENTFD_ANY_LENGTH)
	if err != nil {
		return nil, err
	}
	d := &doorbells{vm: vm}
	if anyLength == 0 {
		d.length = 2 // a queue index (virtio 1.2 §4.1.5.2)
	}
	return d, nil
}

// Assign implements vpci.Doorbells.
func (d *doorbells) Assign(fd int, at memory.GPA) error {
	return d.vm.AssignIOEvent(kvm.IOEvent{FD: fd, Addr: uint64(at), Len: d.length})
}

// Remove implements vpci.Doorbells.
func (d *doorbells) Remove(fd int, at memory.GPA) error {
	return d.vm.DeassignIOEvent(kvm.IOEvent{FD: fd, Addr: uint64(at), Len: d.length})
}
