package kvm

import "fmt"

// GetRegs is the general purpose registers (KVM API §4.11).
func (v *VCPU) GetRegs() (Regs, error) { return get[Regs](v.fd, KVM_GET_REGS) }

// SetRegs sets the general purpose registers (KVM API §4.12). It also drops a
// pending exception.
func (v *VCPU) SetRegs(r Regs) error { return set(v.fd, KVM_SET_REGS, r) }

// GetSregs is the segment and control registers (KVM API §4.13).
func (v *VCPU) GetSregs() (Sregs, error) { return get[Sregs](v.fd, KVM_GET_SREGS) }

// SetSregs sets the segment and control registers (KVM API §4.14).
func (v *VCPU) SetSregs(s Sregs) error { return set(v.fd, KVM_SET_SREGS, s) }

// GetSregs2 is Sregs with the PAE pointers (KVM_CAP_SREGS2, KVM API §4.131).
func (v *VCPU) GetSregs2() (Sregs2, error) { return get[Sregs2](v.fd, KVM_GET_SREGS2) }

// SetSregs2 sets Sregs with the PAE pointers (KVM_CAP_SREGS2, KVM API §4.132).
func (v *VCPU) SetSregs2(s Sregs2) error { return set(v.fd, KVM_SET_SREGS2, s) }

// GetFPU is the x87 and SSE state (KVM API §4.22).
func (v *VCPU) GetFPU() (FPU, error) { return get[FPU](v.fd, KVM_GET_FPU) }

// SetFPU sets the x87 and SSE state (KVM API §4.23). KVM passes over MXCSR;
// SetXSAVE sets it.
func (v *VCPU) SetFPU(f FPU) error { return set(v.fd, KVM_SET_FPU, f) }

// xsaveMinSize is the size of struct kvm_xsave without its extra part.
const xsaveMinSize = 4096

// XSAVESize is the size in bytes of the extended state of this vCPU: 4096, or
// more where the process has asked the kernel for large states such as AMX
// (KVM_CAP_XSAVE2).
func (v *VCPU) XSAVESize() int { return v.xsaveSize }

// GetXSAVE is the extended processor state in the layout of the XSAVE
// instruction, XSAVESize bytes (KVM API §4.42 and §4.134).
func (v *VCPU) GetXSAVE() ([]byte, error) {
	req := KVM_GET_XSAVE
	if v.xsaveSize > xsaveMinSize {
		req = KVM_GET_XSAVE2
	}
	buf := make([]byte, v.xsaveSize)
	_, err := pass(v.fd, req, &buf[0])
	return buf, err
}

// SetXSAVE sets the extended processor state (KVM API §4.43). A shorter area,
// from a host with fewer features, is filled up with zeros, which the format
// takes as the initial state. A longer one is an error unless what is too much
// is zero.
func (v *VCPU) SetXSAVE(area []byte) error {
	if len(area) > v.xsaveSize {
		for _, b := range area[v.xsaveSize:] {
			if b != 0 {
				return fmt.Errorf("kvm: %v: the state has %d bytes in use, this host takes %d: it lacks a feature that the state's host had",
					KVM_SET_XSAVE, len(area), v.xsaveSize)
			}
		}
		area = area[:v.xsaveSize]
	}
	// The kernel reads xsaveSize bytes whatever it is given.
	buf := make([]byte, v.xsaveSize)
	copy(buf, area)
	_, err := pass(v.fd, KVM_SET_XSAVE, &buf[0])
	return err
}

// GetXCRS is the extended control registers (KVM API §4.44).
func (v *VCPU) GetXCRS() (XCRS, error) { return get[XCRS](v.fd, KVM_GET_XCRS) }

// SetXCRS sets the extended control registers (KVM API §4.45).
func (v *VCPU) SetXCRS(x XCRS) error { return set(v.fd, KVM_SET_XCRS, x) }

// GetDebugRegs is the debug registers (KVM API §4.33).
func (v *VCPU) GetDebugRegs() (DebugRegs, error) { return get[DebugRegs](v.fd, KVM_GET_DEBUGREGS) }

// SetDebugRegs sets the debug registers (KVM API §4.34).
func (v *VCPU) SetDebugRegs(d DebugRegs) error { return set(v.fd, KVM_SET_DEBUGREGS, d) }

// GetMPState is whether the processor runs, is halted or waits for its
// start-up (KVM API §4.38). Reading it makes KVM accept pending INIT and SIPI,
// which changes the local APIC: read it first.
func (v *VCPU) GetMPState() (MPState, error) { return get[MPState](v.fd, KVM_GET_MP_STATE) }

// SetMPState sets whether the processor runs (KVM API §4.39). Without an
// in-kernel local APIC only KVM_MP_STATE_RUNNABLE is possible.
func (v *VCPU) SetMPState(s MPState) error { return set(v.fd, KVM_SET_MP_STATE, s) }

// GetVCPUEvents is the exceptions and interrupts under way (KVM API §4.31).
func (v *VCPU) GetVCPUEvents() (VCPUEvents, error) {
	return get[VCPUEvents](v.fd, KVM_GET_VCPU_EVENTS)
}

// SetVCPUEvents sets the exceptions and interrupts under way (KVM API §4.32).
func (v *VCPU) SetVCPUEvents(e VCPUEvents) error { return set(v.fd, KVM_SET_VCPU_EVENTS, e) }

// GetLAPIC is the registers of the in-kernel local APIC (KVM API §4.57).
func (v *VCPU) GetLAPIC() (LAPICState, error) { return get[LAPICState](v.fd, KVM_GET_LAPIC) }

// SetLAPIC sets the registers of the in-kernel local APIC (KVM API §4.58).
func (v *VCPU) SetLAPIC(l LAPICState) error { return set(v.fd, KVM_SET_LAPIC, l) }

// Translate walks the guest's page tables for a linear address
// (KVM API §4.15). Result.Valid is 0 where nothing is mapped.
func (v *VCPU) Translate(linear uint64) (Translation, error) {
	t := Translation{LinearAddress: linear}
	_, err := pass(v.fd, KVM_TRANSLATE, &t)
	return t, err
}

// SetGuestDebug sets breakpoints and single stepping (KVM API §4.87); they
// exit with KVM_EXIT_DEBUG.
func (v *VCPU) SetGuestDebug(d GuestDebug) error { return set(v.fd, KVM_SET_GUEST_DEBUG, d) }

// NMI queues a non-maskable interrupt (KVM API §4.64).
func (v *VCPU) NMI() error {
	_, err := call(v.fd, KVM_NMI, 0)
	return err
}
