package vmm

import (
	"errors"
	"fmt"
	"os"
	"strings"

	virtionet "github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/devices/virtio/net/tap"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/migrate/live"
)

// A guest that moves to another process of the same host takes open files along: its
// memory, if that is a memfd, and its tap interfaces, so that no packet is lost.

// fileMemory is the name of the guest's memory among the files of an offer.
const fileMemory = "memory"

// fileTap is the name of each queue of the tap interface of a network card.
func fileTap(card int) string { return fmt.Sprintf("network card %d", card) }

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
		t, ok := d.Backend().(*tap.Tap)
		if !ok || len(files)+len(t.Descriptors()) > live.MaxFiles {
			continue // the destination makes another one, or opens it by its name
		}
		queues, err := t.Files()
		if err != nil {
			return nil, false, errors.Join(err, closeFiles(files))
		}
		for _, f := range queues {
			files = append(files, live.OfferedFile{Name: fileTap(i), File: f})
		}
	}
	return files, mem != nil, nil
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
		queues := named(i.offer.Files, fileTap(k))
		if _, moved := i.r.Taps[n.ID]; moved || len(queues) == 0 {
			continue
		}
		c.Nets[k] = func() (*virtionet.Device, error) {
			open := func(virtionet.MAC) (virtionet.Backend, error) { return tap.FromFiles(queues) }
			return n.OpenOn(open, i.vm.Name(), k, i.vm.o.Capture, i.vm.warn)
		}
	}
	return nil
}
