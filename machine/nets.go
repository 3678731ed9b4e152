package machine

import (
	"fmt"

	virtionet "github.com/godwit-vmm/godwit/devices/virtio/net"
)

// Net makes a network card. It is called once for each machine, so that a guest
// that reboots gets a new one; the machine closes it.
type Net func() (*virtionet.Device, error)

// addNets adds the network cards in the order of the configuration.
func (m *Machine) addNets() error {
	for i, open := range m.cfg.Nets {
		name := fmt.Sprintf("network card %d", i)
		d, err := open()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if _, err := addVirtio(m, name, d); err != nil {
			return err
		}
		m.nets = append(m.nets, d)
	}
	return nil
}

// Nets are the network cards in the order of Config.Nets.
func (m *Machine) Nets() []*virtionet.Device { return m.nets }
