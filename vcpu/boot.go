package vcpu

import (
	"errors"
	"fmt"

	"github.com/godwit-vmm/godwit/kvm"
)

// Model-specific registers that firmware would set before a kernel starts.
const (
	msrMiscEnable  = 0x1a0
	msrMTRRDefType = 0x2ff
)

// SetFirmwareMSRs leaves the MSRs as firmware does: memory is write-back by
// default, fast string operations are on. The VCPU must be stopped.
func (v *VCPU) SetFirmwareMSRs() error {
	const (
		fastStrings = 1 << 0
		mtrrEnable  = 1 << 11
		writeBack   = 6
	)
	err := v.cpu.SetMSRs([]kvm.MSREntry{
		{Index: msrMTRRDefType, Data: mtrrEnable | writeBack},
		{Index: msrMiscEnable, Data: fastStrings},
	})
	if err != nil {
		return fmt.Errorf("firmware MSRs of vCPU %d: %w", v.cfg.ID, err)
	}
	return nil
}

// ErrTSCStopped is wrapped by the error about a host whose KVM lost the TSC.
var ErrTSCStopped = errors.New("KVM believes that the guest's TSC stands still, so its timers would fire much too late: " +
	"reload the host's kvm modules, which were loaded before its kernel had measured the TSC")

// CheckTSC fails where KVM gave up on the TSC of a new processor. It does so,
// and only says it in the kernel log, when it was loaded with a first, rough
// measure of the host's TSC frequency, the kernel has refined that since by more
// than kvm.tsc_tolerance_ppm, and the processor cannot scale the TSC. The guest
// would see the host's TSC while KVM computes with zero: a timer of the guest
// then fires later by as long as the host has been up.
func (v *VCPU) CheckTSC() error {
	tsc := []kvm.MSREntry{{Index: msrTSC}}
	if err := v.cpu.GetMSRs(tsc); err != nil {
		return fmt.Errorf("TSC of vCPU %d: %w", v.cfg.ID, err)
	}
	if tsc[0].Data == 0 {
		return fmt.Errorf("TSC of vCPU %d: %w", v.cfg.ID, ErrTSCStopped)
	}
	return nil
}

// SetEntry makes change alter the registers, which are as after reset, and
// loads the result. The VCPU must be stopped, with its CPUID set.
func (v *VCPU) SetEntry(change func(*kvm.Regs, *kvm.Sregs)) error {
	r, err := v.cpu.GetRegs()
	if err != nil {
		return fmt.Errorf("entry state of vCPU %d: %w", v.cfg.ID, err)
	}
	s, err := v.cpu.GetSregs()
	if err != nil {
		return fmt.Errorf("entry state of vCPU %d: %w", v.cfg.ID, err)
	}
	change(&r, &s)
	// Registers first: setting them clears what exceptions are pending.
	if err := v.cpu.SetRegs(r); err != nil {
		return fmt.Errorf("entry state of vCPU %d: %w", v.cfg.ID, err)
	}
	if err := v.cpu.SetSregs(s); err != nil {
		return fmt.Errorf("entry state of vCPU %d: %w", v.cfg.ID, err)
	}
	return nil
}
