package kvm

import "fmt"

const (
	kvmIRQFDFlagDeassign = 1 << 0
	kvmIRQFDFlagResample = 1 << 1
)

// AssignIRQFD makes each write to the eventfd fd raise the GSI, as an edge or
// as the MSI that the GSI is routed to (KVM API §4.75). The caller keeps fd
// open for as long as it wants to raise interrupts.
func (m *VM) AssignIRQFD(fd int, gsi uint32) error {
	return m.irqfd(irqfd{fd: uint32(fd), gsi: gsi})
}

// AssignResampleIRQFD does the same for a level-triggered GSI: a write asserts
// the line, and at the guest's end of interrupt KVM lowers it and writes to
// the eventfd resample, upon which a device that still needs service writes to
// fd again (KVM_CAP_IRQFD_RESAMPLE).
func (m *VM) AssignResampleIRQFD(fd, resample int, gsi uint32) error {
	return m.irqfd(irqfd{fd: uint32(fd), gsi: gsi, flags: kvmIRQFDFlagResample, resamplefd: uint32(resample)})
}

// DeassignIRQFD undoes AssignIRQFD and AssignResampleIRQFD. When it returns,
// no interrupt of fd is on its way any more.
func (m *VM) DeassignIRQFD(fd int, gsi uint32) error {
	return m.irqfd(irqfd{fd: uint32(fd), gsi: gsi, flags: kvmIRQFDFlagDeassign})
}

func (m *VM) irqfd(arg irqfd) error {
	if err := set(m.fd, KVM_IRQFD, arg); err != nil {
		return fmt.Errorf("%w (eventfd %d, GSI %d)", err, int32(arg.fd), arg.gsi)
	}
	return nil
}

const (
	kvmIOEventFDFlagDataMatch = 1 << 0
	kvmIOEventFDFlagPIO       = 1 << 1
	kvmIOEventFDFlagDeassign  = 1 << 2
)

// IOEvent is a guest write that signals an eventfd instead of leaving KVM_RUN
// (KVM API §4.59).
type IOEvent struct {
	FD   int    // eventfd
	Addr uint64 // guest physical address, or port
	PIO  bool   // Addr is a port
	// Len is the length of the write in bytes: 1, 2, 4 or 8, or 0 for any
	// (KVM_CAP_IOEVENTFD_ANY_LENGTH), which is also the fastest for MMIO.
	Len int
	// Match makes only writes of Data count. It needs Len.
	Match bool
	Data  uint64
}

// AssignIOEvent registers e. The kernel holds the eventfd until
// DeassignIOEvent or the end of the VM.
func (m *VM) AssignIOEvent(e IOEvent) error { return m.ioeventfd(e, 0) }

// DeassignIOEvent undoes AssignIOEvent with the same e.
func (m *VM) DeassignIOEvent(e IOEvent) error { return m.ioeventfd(e, kvmIOEventFDFlagDeassign) }

func (m *VM) ioeventfd(e IOEvent, flags uint32) error {
	arg := ioeventfd{addr: e.Addr, len: uint32(e.Len), fd: int32(e.FD), flags: flags}
	if e.PIO {
		arg.flags |= kvmIOEventFDFlagPIO
	}
	if e.Match {
		arg.flags |= kvmIOEventFDFlagDataMatch
		arg.datamatch = e.Data
	}
	if err := set(m.fd, KVM_IOEVENTFD, arg); err != nil {
		return fmt.Errorf("%w (eventfd %d, address %#x, length %d)", err, e.FD, e.Addr, e.Len)
	}
	return nil
}
