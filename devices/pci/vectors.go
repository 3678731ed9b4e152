package pci

import (
	"fmt"

	"github.com/godwit-vmm/godwit/devices"
)

// VectorBackend delivers the MSI-X interrupts of one function. The calls for
// one vector come one after the other; those for different vectors may come at
// once. On KVM a vector is a GSI route and an irqfd: Unmask sets the route and
// then assigns the irqfd, Mask deassigns it before the route may change.
type VectorBackend interface {
	// Unmask makes vector deliver msi from now on. It comes again, without
	// a Mask in between, when the guest changes the message of a vector
	// that is not masked.
	Unmask(vector int, msi devices.MSI) error
	// Mask stops vector from delivering anything.
	Mask(vector int) error
	// Fire delivers the interrupt of a vector that is unmasked.
	Fire(vector int) error
}

// SoftwareVectors is a VectorBackend that sends messages itself.
type SoftwareVectors struct {
	send     func(devices.MSI) error
	messages []devices.MSI
}

// NewSoftwareVectors makes a backend for n vectors that sends by the given
// function. The function is called by several goroutines at once.
func NewSoftwareVectors(n int, send func(devices.MSI) error) *SoftwareVectors {
	return &SoftwareVectors{send: send, messages: make([]devices.MSI, n)}
}

// Unmask notes the message.
func (s *SoftwareVectors) Unmask(vector int, msi devices.MSI) error {
	if vector >= len(s.messages) {
		return fmt.Errorf("MSI-X vector %d: the backend has %d", vector, len(s.messages))
	}
	s.messages[vector] = msi
	return nil
}

// Mask does nothing: nobody calls Fire on a masked vector.
func (s *SoftwareVectors) Mask(int) error { return nil }

// Fire sends the message.
func (s *SoftwareVectors) Fire(vector int) error { return s.send(s.messages[vector]) }
