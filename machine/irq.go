package machine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/kvm"
	"golang.org/x/sys/unix"
)

// ioapicPins is the number of pins of the I/O APIC in user space; their GSIs
// come first, those of MSI-X vectors after them.
const ioapicPins = 24

// maxGSI bounds the number of routes: KVM_CAP_IRQ_ROUTING is 4096 everywhere.
const maxGSI = 4096

// router owns the VM's table of interrupt routes, which KVM only takes whole.
// Its methods may be called from any goroutine.
type router struct {
	vm *kvm.VM

	mu   sync.Mutex
	pins [ioapicPins]devices.MSI
	used uint32 // bit per pin that has a route
	msi  map[uint32]devices.MSI
	next uint32 // the lowest GSI that nobody has
}

func newRouter(vm *kvm.VM) *router {
	return &router{vm: vm, next: ioapicPins, msi: make(map[uint32]devices.MSI)}
}

// send delivers an interrupt of the I/O APIC at once.
func (r *router) send(m devices.MSI) error {
	_, err := r.vm.SignalMSI(m.Address, m.Data)
	return err
}

// setPins takes the routes of the level-triggered pins: KVM does not deliver
// through them, but it exits at the end of those vectors (KVM API §7.5).
func (r *router) setPins(pins [ioapicPins]devices.MSI, used uint32) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	lastPins, lastUsed := r.pins, r.used
	r.pins, r.used = pins, used
	err := r.apply()
	if err != nil {
		r.pins, r.used = lastPins, lastUsed
	}
	return err
}

// setMSI takes the route of one GSI. One that KVM refuses, for it is the guest that
// says where the message goes, leaves all routes as they are: it must not be in the
// next table, which would be refused as well.
func (r *router) setMSI(gsi uint32, m devices.MSI) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, had := r.msi[gsi]
	r.msi[gsi] = m
	err := r.apply()
	switch {
	case err == nil:
	case had:
		r.msi[gsi] = last
	default:
		delete(r.msi, gsi)
	}
	return err
}

func (r *router) apply() error {
	routes := make([]kvm.IRQRoutingEntry, 0, ioapicPins+len(r.msi))
	for pin := range uint32(ioapicPins) {
		if r.used>>pin&1 != 0 {
			routes = append(routes, kvm.RouteMSI(pin, r.pins[pin].Address, r.pins[pin].Data))
		}
	}
	for _, gsi := range slices.Sorted(maps.Keys(r.msi)) {
		routes = append(routes, kvm.RouteMSI(gsi, r.msi[gsi].Address, r.msi[gsi].Data))
	}
	if err := r.vm.SetGSIRouting(routes); err != nil {
		return fmt.Errorf("interrupt routes: %w", err)
	}
	return nil
}

// vectors delivers the MSI-X interrupts of one PCI function: each has a GSI
// and an eventfd, and while it is unmasked KVM turns a write to the eventfd
// into the message. It is a pci.VectorBackend; the kernel may write to the
// eventfds as well (vhost).
type vectors struct {
	router *router
	all    []vector
}

type vector struct {
	gsi      uint32
	fd       int
	assigned bool // the eventfd is KVM's irqfd
}

// newVectors makes n masked vectors.
func (r *router) newVectors(n int) (*vectors, error) {
	v := &vectors{router: r}
	for range n {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("eventfd of an interrupt: %w", err), v.close())
		}
		gsi, err := r.allocate()
		if err != nil {
			return nil, errors.Join(err, unix.Close(fd), v.close())
		}
		v.all = append(v.all, vector{gsi: gsi, fd: fd})
	}
	return v, nil
}

func (r *router) allocate() (uint32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next >= maxGSI {
		return 0, fmt.Errorf("no interrupt left for a device: the limit is %d", maxGSI-ioapicPins)
	}
	r.next++
	return r.next - 1, nil
}

// Unmask sets the route before the irqfd is there, so that no interrupt takes
// an old one.
func (v *vectors) Unmask(n int, m devices.MSI) error {
	w := &v.all[n]
	if err := v.router.setMSI(w.gsi, m); err != nil {
		return err
	}
	if w.assigned {
		return nil
	}
	if err := v.router.vm.AssignIRQFD(w.fd, w.gsi); err != nil {
		return err
	}
	w.assigned = true
	return nil
}

// Mask takes the irqfd away; what is written to it meanwhile is not lost but
// comes when it is assigned again.
func (v *vectors) Mask(n int) error {
	w := &v.all[n]
	if !w.assigned {
		return nil
	}
	if err := v.router.vm.DeassignIRQFD(w.fd, w.gsi); err != nil {
		return err
	}
	w.assigned = false
	return nil
}

// Fire delivers the interrupt.
func (v *vectors) Fire(n int) error {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	// EAGAIN says that 2^64-2 interrupts wait already: one more is no news.
	if _, err := unix.Write(v.all[n].fd, one[:]); err != nil && !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("interrupt of GSI %d: %w", v.all[n].gsi, err)
	}
	return nil
}

func (v *vectors) close() error {
	var errs []error
	for i := range v.all {
		errs = append(errs, v.Mask(i), unix.Close(v.all[i].fd))
	}
	v.all = nil
	return errors.Join(errs...)
}
