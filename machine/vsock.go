package machine

import "github.com/godwit-vmm/godwit/devices/virtio/vsock"

// addVsock adds the socket device if there is a path for its socket.
func (m *Machine) addVsock() error {
	if m.cfg.VsockPath == "" {
		return nil
	}
	d, err := vsock.New(vsock.Config{CID: m.cfg.VsockCID, Path: m.cfg.VsockPath, Warn: m.cfg.Warn})
	if err != nil {
		return err
	}
	_, err = m.addVirtio("vsock", d)
	return err
}
