package machine

import (
	"fmt"
	"sync"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/kvm"
)

// ioapicPins is the number of pins of the I/O APIC in user space; their GSIs
// come first, those of MSI-X vectors after them.
const ioapicPins = 24

// router owns the VM's table of interrupt routes, which KVM only takes whole.
// Its methods may be called from any goroutine.
type router struct {
	vm *kvm.VM

	mu     sync.Mutex
	pins   [ioapicPins]devices.MSI
	used   uint32 // bit per pin
	msi    map[uint32]devices.MSI
	next   uint32
	free   []uint32
	buffer []kvm.IRQRoutingEntry
}

// maxGSI bounds the number of routes: KVM_CAP_IRQ_ROUTING is 4096 everywhere.
const maxGSI = 4096

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
	r.pins, r.used = pins, used
	return r.apply()
}

func (r *router) apply() error {
	r.buffer = r.buffer[:0]
	for pin := range uint32(ioapicPins) {
		if r.used>>pin&1 != 0 {
			r.buffer = append(r.buffer, kvm.RouteMSI(pin, r.pins[pin].Address, r.pins[pin].Data))
		}
	}
	for gsi, m := range r.msi {
		r.buffer = append(r.buffer, kvm.RouteMSI(gsi, m.Address, m.Data))
	}
	if err := r.vm.SetGSIRouting(r.buffer); err != nil {
		return fmt.Errorf("interrupt routes: %w", err)
	}
	return nil
}
