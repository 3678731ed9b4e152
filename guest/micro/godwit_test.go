package micro

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/devices/pci"
	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/vpci"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

// virtioGuest is a micro-guest with virtio devices of godwit on a PCI bus: as
// much of godwit's machine as the drivers see.
type virtioGuest struct {
	*guest
	mem         *memory.Guest
	ports, mmio devices.Bus
	// hostile guests ask for interrupts, and the devices complain.
	hostile bool
}

const virtioRAM = 64 << 20

// newVirtioGuest makes a guest with the devices, which are the caller's to close.
func newVirtioGuest(t *testing.T, program []byte, all ...virtio.Device) *virtioGuest {
	t.Helper()
	g, bus := newPCIGuest(t, program, pci.BusConfig{
		Window32: memory.Range{Start: memory.PCIWindowStart, Size: uint64(memory.PCIWindowEnd - memory.PCIWindowStart)},
	})
	for _, d := range all {
		f, err := vpci.New(vpci.Config{
			Name: d.Type().String(), Device: d, Mem: g.mem, Doorbells: doorbells{g.vm},
			Vectors: pci.NewSoftwareVectors(vpci.NumVectors(d), func(devices.MSI) error {
				if !g.hostile {
					t.Error("an interrupt, which no driver asked for")
				}
				return nil
			}),
			Warn: func(err error) {
				if !g.hostile {
					t.Errorf("%v: %v", d.Type(), err)
				}
			},
		})
		g.must(err)
		t.Cleanup(func() { g.must(f.Close()) })
		_, err = bus.Add(f.PCI())
		g.must(err)
	}
	return g
}

// newPCIGuest makes a guest with a PCI bus that has the given windows.
func newPCIGuest(t *testing.T, program []byte, c pci.BusConfig) (*virtioGuest, *pci.Bus) {
	t.Helper()
	mem, err := memory.New(memory.Options{Size: virtioRAM, Name: "guest"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	ram, err := mem.Slice(0, virtioRAM)
	if err != nil {
		t.Fatal(err)
	}
	g := &virtioGuest{mem: mem, guest: newGuestIn(t, ram, program)}
	c.MMIO, c.RAM = &g.mmio, mem.Ranges()
	bus := pci.NewBus(c)
	g.must(g.ports.Map("PCI configuration", devices.PCIConfigPort, devices.PCIConfigPorts, bus.ConfigPorts()))
	return g, bus
}

// doorbells has KVM signal the eventfds of queues.
type doorbells struct{ vm *kvm.VM }

func (d doorbells) Assign(fd int, at memory.GPA) error {
	return d.vm.AssignIOEvent(kvm.IOEvent{FD: fd, Addr: uint64(at)})
}

func (d doorbells) Remove(fd int, at memory.GPA) error {
	return d.vm.DeassignIOEvent(kvm.IOEvent{FD: fd, Addr: uint64(at)})
}

// run runs a program that ends with AnyStop and returns what it left.
func (g *virtioGuest) run() Result {
	g.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	hung := time.AfterFunc(5*time.Minute, func() { panic("the guest does not end") })
	defer hung.Stop()
	for {
		if err := g.cpu.Run(); errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		} else if err != nil {
			g.t.Fatal(err)
		}
		switch reason := g.cpu.ExitReason(); reason {
		case kvm.KVM_EXIT_IO:
			io := g.cpu.IO()
			if io.Port == AnyStop()[0].Port {
				return g.result()
			}
			serve(&g.ports, uint64(io.Port), io.Write, io.Data)
		case kvm.KVM_EXIT_MMIO:
			io := g.cpu.MMIO()
			serve(&g.mmio, io.Addr, io.Write, io.Data)
		default:
			g.t.Fatalf("the guest ended with %v: %+v", reason, g.result())
		}
	}
}

func serve(b *devices.Bus, addr uint64, write bool, data []byte) {
	if write {
		b.Write(addr, data)
	} else {
		b.Read(addr, data)
	}
}

// result is what the program has left up to now.
func (g *virtioGuest) result() Result {
	g.t.Helper()
	r, err := ReadResult(g.ram[ResultStart : ResultStart+ResultSize])
	g.must(err)
	return r
}
