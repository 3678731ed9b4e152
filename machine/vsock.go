package machine

import "github.com/godwit-vmm/godwit/devices/virtio/vsock"

// addVsock adds the socket device if there is a path for its socket.
func (m *Machine) addVsock() error {
	if m.cfg.Vsock == nil {
		return nil
	}
	path, err := m.cfg.Vsock()
	if err != nil || path == "" {
		return err
	}
	d, err := vsock.New(vsock.Config{CID: m.cfg.VsockCID, Path: path, Warn: m.cfg.Warn})
	if err != nil {
		return err
	}
	_, err = addVirtio(m, "vsock", d)
	return err
}
