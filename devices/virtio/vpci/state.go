package vpci

import (
	"errors"
	"fmt"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/devices/virtio"
)

// State is what the transport knows: all that the driver has set up, and where
// the queues are. The state of the device is its own; that of the configuration
// space and of the MSI-X table belongs to the PCI bus.
type State struct {
	Version uint32
	Type    virtio.DeviceType
	// Status is the device status without NEEDS_RESET.
	Status uint8
	// Failure is why the device needs a reset; empty if it does not.
	Failure string
	// Features are those that the driver wrote, and the selects say which
	// half of them its registers show.
	Features                    uint64
	FeatureSelect, AcceptSelect uint32
	QueueSelect, ConfigVector   uint16
	Generation, ISR             uint8
	Queues                      []QueueState
}

// QueueState is a saved queue.
type QueueState struct {
	// Registers are the addresses and the size that the driver wrote.
	Registers virtio.QueueConfig
	Vector    uint16
	// Ring is zero for a queue that is not enabled.
	Ring virtio.QueueState
}

const stateVersion = 1

// Save returns the state of the function, which is paused.
func (f *Function) Save() State {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := State{
		Version: stateVersion, Type: f.device.Type(),
		Status: uint8(f.status.Load()), Features: f.features,
		FeatureSelect: f.featureSelect, AcceptSelect: f.acceptSelect,
		QueueSelect: f.queueSelect, ConfigVector: uint16(f.configVector.Load()),
		Generation: uint8(f.generation.Load()), ISR: uint8(f.isr.Load()),
		Queues: make([]QueueState, len(f.queues)),
	}
	if err := f.Err(); err != nil {
		s.Failure = err.Error()
	}
	for i := range f.queues {
		q := &f.queues[i]
		s.Queues[i] = QueueState{q.config, uint16(q.vector.Load()), q.Queue.Save()}
	}
	return s
}

// Restore takes over a saved state and leaves the function paused. The device
// has the state from the same moment, or gets it before Resume. After an error
// the function is as at power on.
func (f *Function) Restore(s State) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paused = true
	f.stop()
	f.clear()
	if err := f.restore(&s); err != nil {
		f.clear()
		return fmt.Errorf("state of virtio device %s: %w", f.config.Name, err)
	}
	f.restored = true
	return nil
}

func (f *Function) restore(s *State) error {
	if err := f.validate(s); err != nil {
		return err
	}
	for i := range f.queues {
		q, from := &f.queues[i], &s.Queues[i]
		if err := q.Restore(from.Ring, s.Features); err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
		q.config = from.Registers
		q.vector.Store(uint32(from.Vector))
	}
	f.status.Store(uint32(s.Status))
	f.features, f.featureSelect, f.acceptSelect = s.Features, s.FeatureSelect, s.AcceptSelect
	f.queueSelect = s.QueueSelect
	f.configVector.Store(uint32(s.ConfigVector))
	f.generation.Store(uint32(s.Generation))
	f.isr.Store(uint32(s.ISR))
	if s.Failure != "" {
		err := errors.New(s.Failure)
		f.life.Load().err.Store(&err)
	}
	return nil
}

// validate checks everything but the queues' places in memory.
func (f *Function) validate(s *State) error {
	if err := devices.CheckVersion("transport", s.Version, stateVersion); err != nil {
		return err
	}
	has := func(bits uint8) bool { return s.Status&bits == bits }
	switch {
	case s.Type != f.device.Type():
		return fmt.Errorf("it is of a device of kind %s, this one is %s", s.Type, f.device.Type())
	case s.Status&^uint8(statusOfDriver) != 0:
		return fmt.Errorf("unknown bits in the status %#x", s.Status)
	case has(statusDriverOK) && !has(statusFeaturesOK), has(statusFeaturesOK) && !has(statusDriver):
		return fmt.Errorf("the status %#x cannot be", s.Status)
	case has(statusFeaturesOK) && !f.acceptable(s.Features):
		return fmt.Errorf("it has the features %#x, this device offers %#x: give it the options that it had", s.Features, f.offered)
	case s.ISR&^uint8(isrQueue|isrConfig) != 0:
		return fmt.Errorf("unknown bits in the ISR status %#x", s.ISR)
	case !f.validVector(s.ConfigVector):
		return fmt.Errorf("vector %d of %d", s.ConfigVector, f.msix.Vectors())
	case len(s.Queues) != len(f.queues):
		return fmt.Errorf("it has %d queues, this device %d: give it the options that it had", len(s.Queues), len(f.queues))
	}
	for i := range s.Queues {
		if err := f.validateQueue(&s.Queues[i], f.queues[i].max, has(statusFeaturesOK)); err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
	}
	return nil
}

func (f *Function) validateQueue(s *QueueState, most uint16, mayBeEnabled bool) error {
	size := s.Registers.Size
	switch {
	case size == 0 || size&(size-1) != 0 || size > most:
		return fmt.Errorf("%d descriptors, want a power of two up to %d", size, most)
	case !f.validVector(s.Vector):
		return fmt.Errorf("vector %d of %d", s.Vector, f.msix.Vectors())
	case s.Ring == (virtio.QueueState{}):
		return nil
	case !mayBeEnabled:
		return errors.New("enabled before the features are settled")
	case s.Ring.Config != s.Registers:
		return fmt.Errorf("it lies at %+v, its registers say %+v", s.Ring.Config, s.Registers)
	}
	return nil
}

func (f *Function) validVector(v uint16) bool {
	return v == noVector || int(v) < f.msix.Vectors()
}
