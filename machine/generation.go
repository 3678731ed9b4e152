package machine

import (
	"crypto/rand"
	"fmt"

	"github.com/godwit-vmm/godwit/bootloader"
)

// newGeneration gives the machine a generation ID that no other has, also when it
// is a restored one.
func (m *Machine) newGeneration() error {
	id := make([]byte, bootloader.GenerationIDSize)
	if _, err := rand.Read(id); err != nil {
		return fmt.Errorf("generation ID: %w", err)
	}
	return m.mem.Write(bootloader.GenerationIDAddr, id)
}

// announceGeneration tells a restored guest that its generation ID is another one.
func (m *Machine) announceGeneration() {
	// There is no error for an event that exists.
	_ = m.pm.RaiseGPE(bootloader.GenerationEvent)
}

// Generation is the generation ID.
func (m *Machine) Generation() ([bootloader.GenerationIDSize]byte, error) {
	var id [bootloader.GenerationIDSize]byte
	err := m.mem.Read(bootloader.GenerationIDAddr, id[:])
	return id, err
}
