package vmm

import (
	"errors"
	"fmt"
	"os"
	"strings"

	virtionet "github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/devices/virtio/net/tap"
	"github.com/godwit-vmm/godwit/devices/virtio/net/user"
	"github.com/godwit-vmm/godwit/internal/netflag"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/migrate/live"
)

// A guest that moves to another process of the same host takes open files along: its
// memory, if that is a memfd, and what its network cards are connected to, so that no
// packet is lost.

// fileMemory is the name of the guest's memory among the files of an offer.
const fileMemory = "memory"

// fileNet is the name of each file of the back end of a network card.
func fileNet(card int) string { return fmt.Sprintf("network card %d", card) }

// isLocal says that an address may be another process's of this host.
func isLocal(addr string) bool { return strings.HasPrefix(addr, "unix:") }

// passedFiles are the files that go with a guest, which the caller closes, and whether its
// memory is among them.
func passedFiles(m *machine.Machine) (files []live.OfferedFile, memory bool, err error) {
	mem, err := m.Memory().Share()
	if err != nil {
		return nil, false, err
	}
	if mem != nil {
		files = append(files, live.OfferedFile{Name: fileMemory, File: mem})
	}
	for i, d := range m.Nets() {
		backend, ok := d.Backend().(interface{ Files() ([]*os.File, error) })
		if !ok {
			continue // the destination makes another one
		}
		its, err := backend.Files()
		for _, f := range its {
			files = append(files, live.OfferedFile{Name: fileNet(i), File: f})
		}
		if err == nil && len(files) > live.MaxFiles {
			err = fmt.Errorf("the network cards of the guest have more than %d queues, which cannot be passed to another process", live.MaxFiles)
		}
		if err != nil {
			return nil, false, errors.Join(err, closeFiles(files))
		}
	}
	return files, mem != nil, nil
}

// release leaves what was passed to the process that has the guest by now, or may have it.
func release(m *machine.Machine) {
	for _, d := range m.Nets() {
		if b, ok := d.Backend().(interface{ Release() }); ok {
			b.Release()
		}
	}
}

func closeFiles(files []live.OfferedFile) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.File.Close())
	}
	return errors.Join(errs...)
}

// named are the files of an offer that have a name.
func named(files []live.OfferedFile, name string) []*os.File {
	var found []*os.File
	for _, f := range files {
		if f.Name == name {
			found = append(found, f.File)
		}
	}
	return found
}

// takePassed has a machine for a guest that comes use the files that came with it.
func (i *incoming) takePassed(c *machine.Config, nets []Net) error {
	if i.offer.SharesMemory {
		mem := named(i.offer.Files, fileMemory)
		if len(mem) != 1 {
			return fmt.Errorf("%d files came as the guest's memory: want one", len(mem))
		}
		c.Passed = mem[0]
	}
	for k, n := range nets {
		files := named(i.offer.Files, fileNet(k))
		if _, moved := i.r.Taps[n.ID]; moved || len(files) == 0 {
			continue
		}
		c.Nets[k] = func() (*virtionet.Device, error) {
			open := func(virtionet.MAC) (virtionet.Backend, error) { return n.passed(files) }
			return n.OpenOn(open, i.vm.Name(), k, i.vm.o.Capture, i.vm.warn)
		}
	}
	return nil
}

// passed is what a network card is connected to, by the files that came.
func (n *Net) passed(files []*os.File) (virtionet.Backend, error) {
	if n.Kind == netflag.User {
		return user.FromFiles(files, n.MTU)
	}
	return tap.FromFiles(files)
}
