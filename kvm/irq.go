package kvm

import "fmt"

// CreateIRQChip makes PIC, I/O APIC and local APICs in the kernel
// (KVM API §4.24). It must come before the first vCPU.
func (m *VM) CreateIRQChip() error {
	_, err := call(m.fd, KVM_CREATE_IRQCHIP, 0)
	return err
}

// EnableSplitIRQChip makes only the local APICs in the kernel
// (KVM_CAP_SPLIT_IRQCHIP, KVM API §7), with that many GSIs kept for an I/O
// APIC in user space: their routes say which vectors KVM_EXIT_IOAPIC_EOI is
// wanted for. It must come before the first vCPU.
func (m *VM) EnableSplitIRQChip(pins int) error {
	return m.EnableCap(KVM_CAP_SPLIT_IRQCHIP, uint64(pins))
}

// CreatePIT2 makes an 8254 timer in the kernel (KVM API §4.71). It needs
// CreateIRQChip.
func (m *VM) CreatePIT2() error { return set(m.fd, KVM_CREATE_PIT2, pitConfig{}) }

// GetPIT2 is the state of the timer (KVM API §4.72).
func (m *VM) GetPIT2() (PITState2, error) { return get[PITState2](m.fd, KVM_GET_PIT2) }

// SetPIT2 sets the state of the timer (KVM API §4.73).
func (m *VM) SetPIT2(s PITState2) error { return set(m.fd, KVM_SET_PIT2, s) }

// GetIRQChip is the state of one interrupt controller of CreateIRQChip, chip
// being KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE or KVM_IRQCHIP_IOAPIC
// (KVM API §4.26).
func (m *VM) GetIRQChip(chip uint32) (IRQChip, error) {
	s := IRQChip{ChipID: chip}
	_, err := pass(m.fd, KVM_GET_IRQCHIP, &s)
	return s, err
}

// SetIRQChip sets the state of the interrupt controller s.ChipID
// (KVM API §4.27).
func (m *VM) SetIRQChip(s IRQChip) error { return set(m.fd, KVM_SET_IRQCHIP, s) }

// IRQLine sets the level of a GSI of CreateIRQChip (KVM API §4.25). An edge is
// true followed by false.
func (m *VM) IRQLine(gsi uint32, level bool) error {
	arg := irqLevel{irq: gsi}
	if level {
		arg.level = 1
	}
	return set(m.fd, KVM_IRQ_LINE, arg)
}

// SignalMSI delivers a message signalled interrupt (KVM API §4.71). It does
// not allocate. delivered is false where every destination blocked it; that
// is no error.
func (m *VM) SignalMSI(address uint64, data uint32) (delivered bool, err error) {
	arg := msi{addressLo: uint32(address), addressHi: uint32(address >> 32), data: data}
	n, err := pass(m.fd, KVM_SIGNAL_MSI, &arg)
	return n > 0, err
}

// IRQRoutingEntry is struct kvm_irq_routing_entry: where the interrupts of a
// GSI go. Make one with RouteIRQChip or RouteMSI.
type IRQRoutingEntry struct {
	GSI   uint32
	Type  uint32 // KVM_IRQ_ROUTING_*
	Flags uint32
	_     uint32
	U     [8]uint32
}

// Values of IRQRoutingEntry.Type.
const (
	KVM_IRQ_ROUTING_IRQCHIP = 1
	KVM_IRQ_ROUTING_MSI     = 2
)

// RouteIRQChip routes a GSI to a pin of an interrupt controller of
// CreateIRQChip.
func RouteIRQChip(gsi, chip, pin uint32) IRQRoutingEntry {
	return IRQRoutingEntry{GSI: gsi, Type: KVM_IRQ_ROUTING_IRQCHIP, U: [8]uint32{chip, pin}}
}

// RouteMSI makes a GSI send a message signalled interrupt.
func RouteMSI(gsi uint32, address uint64, data uint32) IRQRoutingEntry {
	return IRQRoutingEntry{
		GSI: gsi, Type: KVM_IRQ_ROUTING_MSI,
		U: [8]uint32{uint32(address), uint32(address >> 32), data},
	}
}

// SetGSIRouting replaces the whole routing table (KVM API §4.52), at most as
// many entries as KVM_CAP_IRQ_ROUTING says. The kernel waits for readers of
// the old table; it is not for a hot path.
func (m *VM) SetGSIRouting(entries []IRQRoutingEntry) error {
	h, e := flexible[irqRoutingHeader, IRQRoutingEntry](len(entries))
	h.nr = uint32(len(entries))
	copy(e, entries)
	if _, err := pass(m.fd, KVM_SET_GSI_ROUTING, h); err != nil {
		return fmt.Errorf("%w (%d routes)", err, len(entries))
	}
	return nil
}
