package vcpu

import (
	"errors"
	"fmt"
	"time"

	"github.com/godwit-vmm/godwit/kvm"
	"golang.org/x/sys/unix"
)

// stateVersion is the version of State that this program writes and reads.
const stateVersion = 1

// State is all of a processor that a guest could notice.
type State struct {
	Version   uint32
	CPUID     []kvm.CPUIDEntry2
	MPState   kvm.MPState
	Regs      kvm.Regs
	Sregs     kvm.Sregs
	XSAVE     []byte
	XCRS      kvm.XCRS
	DebugRegs kvm.DebugRegs
	LAPIC     []byte // the registers of kvm.LAPICState
	TSCkHz    uint32
	MSRs      []kvm.MSREntry
	Events    kvm.VCPUEvents
}

// MSRs whose place in the order matters, or that KVM's list may leave out.
const (
	msrTSC         = 0x10
	msrTSCDeadline = 0x6e0
)

// Save reads the state of a parked VCPU. msrs is the list of MSRs to save, as
// kvm.System.MSRIndexList has it; those that this processor does not have are
// left out.
//
// The order follows from what reading changes (KVM API §4): reading MP_STATE
// first lets KVM work off a pending INIT or SIPI, which changes the local APIC
// and the events; the events come last because a nested event may become an
// exception while the rest is read.
func (v *VCPU) Save(msrs []uint32) (*State, error) {
	s := &State{Version: stateVersion}
	var err error
	read := func(what string, f func() error) {
		if err == nil {
			if e := f(); e != nil {
				err = fmt.Errorf("save %s of vCPU %d: %w", what, v.cfg.ID, e)
			}
		}
	}
	read("MP state", func() (e error) { s.MPState, e = v.cpu.GetMPState(); return })
	read("registers", func() (e error) { s.Regs, e = v.cpu.GetRegs(); return })
	read("system registers", func() (e error) { s.Sregs, e = v.cpu.GetSregs(); return })
	read("extended state", func() (e error) { s.XSAVE, e = v.cpu.GetXSAVE(); return })
	read("extended control registers", func() (e error) { s.XCRS, e = v.cpu.GetXCRS(); return })
	read("debug registers", func() (e error) { s.DebugRegs, e = v.cpu.GetDebugRegs(); return })
	read("local APIC", func() error {
		l, e := v.cpu.GetLAPIC()
		s.LAPIC = l.Regs[:]
		return e
	})
	read("TSC frequency", func() (e error) { s.TSCkHz, e = v.cpu.GetTSCKHz(); return })
	// What KVM has, not what it was given: it fills in bits as the guest
	// sets control registers.
	read("CPUID", func() (e error) { s.CPUID, e = v.cpu.GetCPUID2(); return })
	read("MSRs", func() (e error) { s.MSRs, e = v.readMSRs(msrs); return })
	read("events", func() (e error) { s.Events, e = v.cpu.GetVCPUEvents(); return })
	if err != nil {
		return nil, err
	}
	return s, nil
}

// readMSRs reads what can be read of the list.
func (v *VCPU) readMSRs(list []uint32) ([]kvm.MSREntry, error) {
	entries := make([]kvm.MSREntry, 0, len(list))
	for _, index := range list {
		entries = append(entries, kvm.MSREntry{Index: index})
	}
	var all []kvm.MSREntry
	for len(entries) > 0 {
		err := v.cpu.GetMSRs(entries)
		var stopped *kvm.MSRError
		switch {
		case err == nil:
			return append(all, entries...), nil
		case errors.As(err, &stopped) && stopped.Position < len(entries):
			// KVM lists MSRs for the host; this guest's CPUID may
			// not have the feature that one belongs to.
			all = append(all, entries[:stopped.Position]...)
			entries = entries[stopped.Position+1:]
		default:
			return nil, err
		}
	}
	return all, nil
}

// AdvanceTSC moves the time stamp counter on by so much time, which is not negative, at the
// rate that it had.
func (s *State) AdvanceTSC(by time.Duration) {
	kHz, rest := uint64(s.TSCkHz), uint64(by%time.Millisecond)
	ticks := uint64(by/time.Millisecond)*kHz + rest*kHz/uint64(time.Millisecond)
	for i := range s.MSRs {
		if s.MSRs[i].Index == msrTSC {
			s.MSRs[i].Data += ticks
		}
	}
}

// Restore loads a saved state into a VCPU that has not started. The VM's
// interrupt controllers, memory and other processors exist already. It has
// the CPUID table that a new guest would get on this host.
//
// The order: CPUID decides what else may be set; REGS clears pending
// exceptions and so comes before the events; SREGS sets the APIC base, without
// which the local APIC's state is refused; MSRs follow the local APIC because
// the TSC deadline is armed only in the right timer mode, and the deadline
// comes after the TSC that it is compared with.
func (v *VCPU) Restore(s *State) error {
	if s.Version != stateVersion {
		return fmt.Errorf("state of vCPU %d: version %d, this program reads version %d: save it again with the program that is to restore it", v.cfg.ID, s.Version, stateVersion)
	}
	// Not what KVM says that it supports: a KVM without hardware shows the
	// guest features of the host that it does not list.
	here, err := v.cpu.GetCPUID2()
	if err != nil {
		return err
	}
	if err := checkFeatures(s.CPUID, here); err != nil {
		return err
	}
	write := func(what string, f func() error) {
		if err == nil {
			if e := f(); e != nil {
				err = fmt.Errorf("restore %s of vCPU %d: %w", what, v.cfg.ID, e)
			}
		}
	}
	if !sameCPUID(s.CPUID, here) { // as after most restores on the same host: KVM takes its time
		write("CPUID", func() error { return v.cpu.SetCPUID2(s.CPUID) })
	}
	write("TSC frequency", func() error { return v.setTSCkHz(s.TSCkHz) })
	write("MP state", func() error { return v.cpu.SetMPState(s.MPState) })
	write("registers", func() error { return v.cpu.SetRegs(s.Regs) })
	write("system registers", func() error { return v.cpu.SetSregs(s.Sregs) })
	write("extended state", func() error { return v.cpu.SetXSAVE(s.XSAVE) })
	if s.XCRS.NrXCRs > 0 { // a host without XSAVE has none, and refuses none
		write("extended control registers", func() error { return v.cpu.SetXCRS(s.XCRS) })
	}
	write("debug registers", func() error { return v.cpu.SetDebugRegs(s.DebugRegs) })
	write("local APIC", func() error {
		var l kvm.LAPICState
		if len(s.LAPIC) != len(l.Regs) {
			return fmt.Errorf("%d bytes of registers, want %d", len(s.LAPIC), len(l.Regs))
		}
		copy(l.Regs[:], s.LAPIC)
		return v.cpu.SetLAPIC(l)
	})
	write("MSRs", func() error { return v.cpu.SetMSRs(inOrder(s.MSRs)) })
	write("events", func() error { return v.cpu.SetVCPUEvents(s.Events) })
	write("kvmclock", func() error {
		// EINVAL says that the guest does not use kvmclock.
		if e := v.cpu.KVMClockCtrl(); !errors.Is(e, unix.EINVAL) {
			return e
		}
		return nil
	})
	return err
}

// setTSCkHz leaves a rate alone that is as good as the host's own: setting it
// makes KVM scale, which not every host can.
func (v *VCPU) setTSCkHz(khz uint32) error {
	const tolerance = 250 // ppm, KVM's own
	host, err := v.cpu.GetTSCKHz()
	if err != nil || khz == 0 {
		return err
	}
	difference := int64(khz) - int64(host)
	if max(difference, -difference)*1_000_000 <= tolerance*int64(host) {
		return nil
	}
	return v.cpu.SetTSCKHz(khz)
}

// inOrder puts the TSC first and its deadline last.
func inOrder(msrs []kvm.MSREntry) []kvm.MSREntry {
	var first, middle, last []kvm.MSREntry
	for _, m := range msrs {
		switch m.Index {
		case msrTSC:
			first = append(first, m)
		case msrTSCDeadline:
			last = append(last, m)
		default:
			middle = append(middle, m)
		}
	}
	return append(append(first, middle...), last...)
}
